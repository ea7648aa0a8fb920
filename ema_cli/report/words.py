"""A report in sentences: what average this is, of what, what to watch out for, what the geometry suggests.

Every sentence is made of numbers of the run. None says that the average is better: the tool has seen no data.
"""

from __future__ import annotations

from statistics import fmean

from ema_cli.records.files import FileRole
from ema_cli.report.model import Average, DiagnosticsOfWeights, Geometry, MethodUsed, Output, Report
from ema_cli.text import human_bytes, percent, plural, safe_text, shortlist
from ema_cli.weights.methods import decay_words
from ema_cli.weights.share_warnings import UNOBSERVED

_TURNED = 0.2
"""A mean cosine beyond it, to either side, is a direction."""

NAMES = {
    "ema": "EMA",
    "ema-hold": "EMA that waits at the next checkpoint",
    "ema-warmup": "EMA with a warm-up",
    "uniform": "plain mean",
    "uniform-time": "mean over time",
    "ramp": "mean with growing weights",
    "power": "power-function EMA",
    "lr-decay": "mean weighted like a falling learning rate",
    "manual": "mean with weights by hand",
}


def definition(method: MethodUsed, unit: str) -> str:
    """Describe a method with its parameters: ``ema, decay 0.8 per checkpoint, E_1 = theta_1``."""
    return ", ".join([method.name, *parameters(method, unit)])


def parameters(method: MethodUsed, unit: str) -> list[str]:
    """Return the parameters of a method in words, each with its unit."""
    parts = []
    if method.decay is not None and method.one_minus_decay is not None:
        limit = "up to " if method.warmup else ""
        half = f" = half-life {method.half_life:g}" if method.half_life is not None else ""
        one = unit if method.per == "step" else "checkpoint"
        parts.append(f"decay {limit}{decay_words(method.decay, method.one_minus_decay)}{half} per {one}")
    if method.warmup is not None:
        powers = "" if method.power is None else f" {method.inv_gamma:g}, power {method.power:.4g}"
        parts.append(f"warm-up {method.warmup}{powers}")
    if method.init is not None:
        parts.append("E_1 = theta_1" if method.init == "first" else "debiased")
    parts += [f"sigma_rel {method.sigma_rel:g}"] if method.sigma_rel is not None else []
    parts += [f"shape {method.shape}"] if method.shape is not None else []
    parts += ["not normalised"] if method.normalize is False else []
    return parts


def age(found: DiagnosticsOfWeights) -> str:
    """Return the mean age with its unit: ``312.5 steps``."""
    return f"{found.mean_age:,.4g} {found.mean_age_unit}s"


def verdict(report: Report, average: Average) -> str:
    """Say in one sentence what average this is, and of what."""
    found = average.diagnostics
    count = len(found.implied_lr)
    method = average.method
    name, details = NAMES.get(method.name, method.name), ", ".join(parameters(method, found.mean_age_unit))
    what = f"{name} ({details})" if details else name
    return (
        f"{what[:1].upper()}{what[1:]} of {plural(count, 'checkpoint')}{_span(report)}, which counts as "
        f"{found.effective_checkpoints:.1f} of them and is {age(found)} old on average."
    )


def _span(report: Report) -> str:
    steps = [known.step for known in report.inputs if known.step is not None]
    if len(steps) < len(report.inputs) or not steps:
        return ""
    return f" at step {steps[0]:,}" if len(steps) == 1 else f", steps {min(steps):,} to {max(steps):,}"


def reconstruction(method: MethodUsed, found: DiagnosticsOfWeights) -> str:
    """Say how well an EMA per step can be rebuilt; empty for other averages."""
    parts = []
    if found.window_ratio_u is not None:
        parts.append(f"u = median gap x (1-d) = {found.window_ratio_u:.3g}")
        error = expected_error(method, found)
        if error:
            parts.append(f"distance to the true EMA: about {error} of that of the last checkpoint (an estimate)")
    if found.unobserved_mass is not None:
        left_out = ", and is left out" if method.init == "debias" else ""
        parts.append(f"before the first checkpoint lies {percent(found.unobserved_mass)} of it{left_out}")
    return "; ".join(parts)


def expected_error(method: MethodUsed, found: DiagnosticsOfWeights) -> str:
    """Return the predicted error; empty where too much lies before the first checkpoint for it to mean anything."""
    if found.predicted_error is None:
        return ""
    unseen = found.unobserved_mass is not None and found.unobserved_mass > UNOBSERVED and method.init != "debias"
    return "" if unseen else percent(found.predicted_error)


def movement(geometry: Geometry) -> str:
    """Say what the turns between successive checkpoints suggest."""
    cosines = [cosine for cosine in geometry.step_cosines if cosine is not None]
    if not cosines:
        return ""
    mean = fmean(cosines)
    if mean < -_TURNED:
        suggests = "the checkpoints bounce about a centre, and an average lies nearer to it than each of them"
    elif mean > _TURNED:
        suggests = "the run is still travelling, and an average lags behind its last checkpoint"
    else:
        suggests = "neither a drift nor a bounce stands out, as in a random walk"
    return (
        f"Mean cosine between successive steps {mean:.2f}: {suggests}. This is geometry alone: whether the average "
        "is the better model, only an evaluation can tell."
    )


def measured_on(geometry: Geometry) -> str:
    """Say what the distances are measured on."""
    if geometry.sampled_fraction >= 1:
        return "measured on all elements"
    return f"estimated from {percent(geometry.sampled_fraction)} of the elements, a fixed sample of every tensor"


def place(output: Output) -> str:
    """Return the path of an output, with a slash at the end of that of a folder."""
    return f"{output.path}/" if output.files else output.path


def size(output: Output) -> str:
    """Return the size of an output and, of a folder, how many files of weights it has."""
    weights = sum(file.role == FileRole.WEIGHTS for file in output.files)
    return human_bytes(output.bytes) + (f" in {plural(weights, 'shard')}" if weights else "")


def carried(output: Output) -> str:
    """Return what was carried over into a folder; empty if nothing was."""
    return shortlist(safe_text(file.name) for file in output.files if file.role == FileRole.SIDE_FILE)
