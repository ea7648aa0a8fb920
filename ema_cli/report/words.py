"""An average in sentences: its method, its checkpoints, how close it is to the true EMA, what was sampled before.

Every sentence follows from numbers of the run. None says that the average is better: the program has seen no data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ema_cli.records.files import FileRole
from ema_cli.records.plan import PlannedOutput
from ema_cli.records.reported_output import Output
from ema_cli.records.series_evidence import APART, LEAST_FOR_ORDER, LONGER, Evidence
from ema_cli.report.model import Average, BatchNormUpdate, MethodUsed, Report
from ema_cli.text import human_bytes, number, percent, plural, quoted, safe_text, shortlist
from ema_cli.weights.diagnostics import Diagnostics
from ema_cli.weights.methods import decay_words
from ema_cli.weights.share_warnings import UNOBSERVED

_METHOD_NAMES = {
    "ema": "EMA",
    "ema-hold": "piecewise-constant EMA",
    "ema-warmup": "EMA with decay warmup",
    "uniform": "uniform mean",
    "uniform-time": "time-weighted mean",
    "ramp": "linearly weighted mean",
    "power": "power-function EMA",
    "lr-decay": "mean weighted like a learning-rate decay",
    "manual": "mean with manual weights",
    "update-bn": "copy with recomputed BatchNorm statistics",
}


def device(name: str, reason: str | None, lane: str | None = None) -> str:
    """Name a device, what it computes with, and why ``--device auto`` chose it: ``cpu (avx2, auto: no NVIDIA driver)``.

    ``lane`` and ``reason`` may be unknown or absent.
    """
    more = ", ".join(filter(None, (lane, f"auto: {reason}" if reason else "")))
    return f"{name} ({safe_text(more)})" if more else name


def definition(method: MethodUsed, unit: str) -> str:
    """Describe a method with its parameters: ``EMA, decay 0.8 per checkpoint, starting from the first``."""
    return ", ".join([_name(method), *_parameters(method, unit)])


def _name(method: MethodUsed) -> str:
    name = _METHOD_NAMES.get(method.name, method.name)
    return name[:1].upper() + name[1:]


def _parameters(method: MethodUsed, unit: str) -> list[str]:
    """Return the parameters of a method in words; ``unit`` is that of a decay per step."""
    parts = []
    if method.decay is not None and method.one_minus_decay is not None:
        limit = "up to " if method.warmup else ""
        half_life = f" (half-life {method.half_life:g})" if method.half_life is not None else ""
        per = unit if method.per == "step" else "checkpoint"
        parts.append(f"decay {limit}{decay_words(method.decay, method.one_minus_decay)}{half_life} per {per}")
    if method.warmup is not None:
        powers = "" if method.power is None else f" {method.inv_gamma:g}, power {method.power:.4g}"
        parts.append(f"warmup {method.warmup}{powers}")
    if method.init is not None:
        parts.append("starting from the first" if method.init == "first" else "debiased")
    parts += [f"sigma_rel {method.sigma_rel:g}"] if method.sigma_rel is not None else []
    parts += [f"shape {method.shape}"] if method.shape is not None else []
    parts += ["not normalized"] if method.normalize is False else []
    return parts


def effective(diagnostics: Diagnostics) -> str:
    """Return the effective checkpoints of all: ``8.67 of 13``."""
    return f"{number(diagnostics.effective_checkpoints)} of {len(diagnostics.implied_lr):,}"


def mean_age(diagnostics: Diagnostics) -> str:
    """Return the mean age with its unit: ``312 steps``."""
    return f"{number(diagnostics.mean_age)} {diagnostics.mean_age_unit}s"


def verdict(report: Report, average: Average) -> str:
    """Return an average in two sentences: the method and its checkpoints; their effective number and mean age."""
    if report.batch_norm is not None:
        return _recomputed(report.batch_norm)
    diagnostics = average.diagnostics
    count = len(diagnostics.implied_lr)
    made = f"{_what(average.method)} of {plural(count, 'checkpoint')}{_span(report, average)}"
    strength = _strength(average.method, diagnostics.mean_age_unit)
    second = "With one checkpoint there is nothing to average"
    if count > 1:
        checkpoints = number(diagnostics.effective_checkpoints)
        second = f"It has {checkpoints} effective checkpoints and a mean age of {mean_age(diagnostics)}"
    return f"{made}{strength}. {second}."


def overview(report: Report) -> str:
    """Return the averages of a report in two sentences: the verdict of one, what several have in common."""
    first, *more = report.averages
    if not more:
        return verdict(report, first)
    found = [average.diagnostics for average in report.averages]
    count = plural(len(first.diagnostics.implied_lr), "checkpoint")
    return (
        f"{plural(len(found), 'average')} of {count}{_span(report, first)}. "
        f"They have {_between([one.effective_checkpoints for one in found])} effective checkpoints "
        f"and a mean age of {_between([one.mean_age for one in found])} {found[0].mean_age_unit}s."
    )


def in_short(average: Average) -> str:
    """Return the method of an average with the parameter that matters: ``EMA, with decay 0.8 per checkpoint``."""
    return _what(average.method) + _strength(average.method, average.diagnostics.mean_age_unit)


def _what(method: MethodUsed) -> str:
    if method.shape is not None:
        return f"Mean weighted like a learning-rate decay ({method.shape})"
    return _name(method)


def _strength(method: MethodUsed, unit: str) -> str:
    """Return the parameter that says how many checkpoints count: the decay, the half-life or the relative width."""
    if method.sigma_rel is not None:
        return f", with sigma_rel {method.sigma_rel:g}"
    if method.decay is None or method.one_minus_decay is None:
        return ""
    per = unit if method.per == "step" or method.name == "ema-hold" else "checkpoint"
    if method.half_life is not None:
        return f", with a half-life of {number(method.half_life)} {per}s"
    limit = "up to " if method.warmup else ""
    return f", with decay {limit}{decay_words(method.decay, method.one_minus_decay)} per {per}"


def _span(report: Report, average: Average) -> str:
    """Return the steps of the checkpoints, also of those in a previous average; empty if some have none."""
    inputs = [known.step for known in report.inputs if known.step is not None]
    steps = inputs if len(inputs) == len(report.inputs) else []
    if average.continued is not None:
        steps = list(average.continued.steps or ())
    if not steps:
        return ""
    unit = average.diagnostics.mean_age_unit
    unit = "step" if unit == "checkpoint" else unit
    if len(steps) == 1:
        return f" at {unit} {steps[0]:,}"
    return f", {unit}s {min(steps):,} to {max(steps):,}"


def _between(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _recomputed(update: BatchNormUpdate) -> str:
    """Return what a pass over data changed, in two sentences."""
    seen = sum(layer.batches > 0 for layer in update.layers)
    samples = "" if update.samples is None else f" with {plural(update.samples, 'sample')}"
    return (
        f"Copy of one checkpoint, with the BatchNorm statistics recomputed on {update.batches:,} "
        f"{'batch' if update.batches == 1 else 'batches'}{samples}. "
        f"The statistics of {seen:,} of {plural(len(update.layers), 'layer')} are new; all weights are unchanged."
    )


def reconstruction(method: MethodUsed, diagnostics: Diagnostics) -> str:
    """Return how close a per-step EMA is to the true one; empty for other averages."""
    parts = []
    if diagnostics.window_ratio_u is not None:
        parts.append(f"u = median gap x (1-d) = {number(diagnostics.window_ratio_u)}")
        error = expected_error(method, diagnostics)
        if error:
            parts.append(f"estimated distance to the true EMA: {error} of the last checkpoint's")
    if diagnostics.unobserved_mass is not None:
        instead = "which are not counted" if method.init == "debias" else "which is used instead"
        mass = percent(diagnostics.unobserved_mass)
        parts.append(f"{mass} of the EMA belongs to steps before the first checkpoint, {instead}")
    return "; ".join(parts)


def expected_error(method: MethodUsed, diagnostics: Diagnostics) -> str:
    """Return the predicted error; empty if too much of the average belongs to steps before the first checkpoint."""
    if diagnostics.predicted_error is None:
        return ""
    unobserved = 0 if method.init == "debias" else diagnostics.unobserved_mass or 0
    return "" if unobserved > UNOBSERVED else percent(diagnostics.predicted_error)


def evidence(found: Evidence) -> str:
    """Return what the sampled weights show: whether the checkpoints are similar, and in order."""
    cosines = [cosine for cosine in found.nearest_cosines if cosine is not None]
    if not cosines:
        return "the sampled weights do not differ" if not found.elements else "too few weights differ for a verdict"
    return f"{_relation(found)} (cosine to the nearest {_range(min(cosines), max(cosines))}){_order(found)}"


def _relation(found: Evidence) -> str:
    if found.outliers:
        return f"similar, except {shortlist(f'#{position + 1}' for position in found.outliers)}"
    return "not one series" if APART & set(found.verdicts) else "similar"


def _order(found: Evidence) -> str:
    """Return a clause about the order; empty where the checkpoints are not of one run."""
    different = len(found.inputs) - sum(len(group) - 1 for group in found.copies)
    if APART & set(found.verdicts):
        return ""
    if found.path_ratio is None and different < LEAST_FOR_ORDER:
        return f"; too few checkpoints to judge the order ({LEAST_FOR_ORDER} needed)"
    if found.path_ratio is None or not found.order_decided:
        return "; the weights fit several orders"
    if found.path_ratio < LONGER:
        return "; the order agrees with the weights"
    return f"; the order does not agree with the weights (path {number(found.path_ratio)} x the shortest)"


def _range(low: float, high: float) -> str:
    return f"{low:z.2f}" if f"{low:z.2f}" == f"{high:z.2f}" else f"{low:z.2f} to {high:z.2f}"


def tensor_counts(actions: Iterable[str]) -> str:
    """Return how many tensors are averaged, copied or else: ``14 tensors averaged, 2 copied``."""
    counts = Counter(actions)
    factors = counts["concatenated"]
    parts = [f"{plural(counts['averaged'], 'tensor')} averaged"] if counts["averaged"] or not factors else []
    if factors:
        parts.append(f"{plural(factors, 'factor')} of {plural(factors // 2, 'LoRA update')} concatenated")
    parts += [f"{counts[action]:,} {action}" for action in ("scaled", "copied") if counts[action]]
    return ", ".join(parts)


def weights_keys(keys: Iterable[str]) -> str:
    """Return where the weights are, each key in quotes: ``"generator", "discriminator"`` for two keys together."""
    return shortlist(map(quoted, dict.fromkeys(key for joined in keys for key in joined.split(", "))))


def output_path(output: Output) -> str:
    """Return the path of an output, with a trailing slash if it is a folder."""
    return f"{output.path}/" if output.files else output.path


FORMATS = {"same": "a copy of the last checkpoint", "dcp": "torch.distributed.checkpoint"}
"""Formats of outputs in words, except safetensors."""


def output_size(output: Output) -> str:
    """Return the size of an output, for a folder its number of weight files, and its format unless safetensors."""
    weights = sum(file.role == FileRole.WEIGHTS for file in output.files)
    noun = "file" if output.format in FORMATS else "shard"
    size = human_bytes(output.bytes) + (f" in {plural(weights, noun)}" if weights else "")
    return f"{size} ({FORMATS[output.format]})" if output.format in FORMATS else size


def side_files(output: Output) -> str:
    """Return the names of the side files copied into an output folder; empty if there are none."""
    return shortlist(safe_text(file.name) for file in output.files if file.role == FileRole.SIDE_FILE)


def planned_side_files(output: PlannedOutput) -> str:
    """Return the names of the side files that an output folder gets; empty if there are none."""
    return shortlist(quoted(side.name) for side in output.beside if side.role is FileRole.SIDE_FILE)
