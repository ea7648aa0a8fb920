"""Warnings about the shares of an average, each with a hint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ema_cli.errors import RunWarning
from ema_cli.text import number, percent
from ema_cli.weights.choices import decay_for_first_share, half_life_for_first_share, two_digits
from ema_cli.weights.diagnostics import Diagnostics, diagnose, effective_gap
from ema_cli.weights.methods import Decay, Weighting, decay_text
from ema_cli.weights.timeline import Timeline

_DOMINATING = 0.5
UNOBSERVED = 0.1
"""A larger part of an average before the first checkpoint is worth a warning."""
_NEARLY_EQUAL = 1.1
"""Largest over smallest share below which an average is practically a plain mean."""
_FEW = 3
"""With fewer checkpoints, nearly equal shares are no problem."""
_WINDOWS_PER_GAP = 0.1
"""u at which the error of the reconstruction is some percent of that of the last checkpoint."""
_MEANT_TO_BE_EQUAL = ("uniform", "uniform-time", "manual")


def warn_of_shares(weighting: Weighting, timeline: Timeline) -> list[RunWarning]:
    """Return the warnings about the shares of one average."""
    if timeline.count == 1:
        message = "there is only one checkpoint, so the average is a copy of it"
        hint = "name more checkpoints, or the folder that contains them"
        return [RunWarning(code="one-checkpoint", message=message, hint=hint)]
    if weighting.method.name not in _MEANT_TO_BE_EQUAL and _is_plain_mean(weighting.shares):
        return [_plain_mean(weighting)]
    return list(_about_the_window(weighting, timeline))


def _is_plain_mean(shares: Sequence[float]) -> bool:
    return len(shares) >= _FEW and max(shares) <= _NEARLY_EQUAL * min(shares)


def _plain_mean(weighting: Weighting) -> RunWarning:
    low, high = percent(min(weighting.shares)), percent(max(weighting.shares))
    return RunWarning(
        code="plain-mean",
        message=f"{weighting.method.label} gives all checkpoints nearly equal shares ({low} to {high}), a plain mean",
        hint="--method uniform if a plain mean is intended"
        + ("; otherwise a smaller --decay or a shorter --half-life" if weighting.method.decay else ""),
    )


def _about_the_window(weighting: Weighting, timeline: Timeline) -> Iterator[RunWarning]:
    found = diagnose(weighting.method, weighting.shares, timeline)
    method, decay = weighting.method, weighting.method.decay
    dominated = decay is not None and found.first > _DOMINATING and method.init != "debias"
    dominated = dominated and not timeline.after_live
    if decay is not None and dominated:
        yield _first_dominates(weighting, decay, timeline)
    if decay is not None and found.window_ratio_u is not None:
        gap = max(timeline.median_gap, effective_gap(decay, timeline))
        if gap * decay.complement > 1:
            yield _window_too_short(decay, found, gap, timeline)
    mass = found.unobserved_mass
    if mass is not None and mass > UNOBSERVED and method.init != "debias":
        yield _unobserved_mass(weighting, mass, timeline)
    elif decay is not None and method.warmup is None and not dominated and not timeline.after_live:
        yield from _window_not_filled(decay, timeline, per_step=method.uses_steps)


def _first_dominates(weighting: Weighting, decay: Decay, timeline: Timeline) -> RunWarning:
    kept = f"the first checkpoint keeps {percent(weighting.shares[0])} of this average"
    if weighting.method.uses_steps:
        cause = f"the checkpoints span {_units(timeline.span, timeline)}, too few for {_named(decay)}"
        hint = f"{_half_life_for(timeline)}; --init debias"
    else:
        better = decay_for_first_share(timeline.count - 1)
        cause = f"there are {timeline.count:,} checkpoints; {_named(decay)} per checkpoint needs about "
        cause += _count(1 / decay.complement)
        left = percent(float(better) ** (timeline.count - 1))
        hint = f"--decay {better} (leaves it {left}); --method uniform"
        if weighting.method.name == "ema":
            hint = f"{hint}; --init debias"
            stepped = timeline.steps and timeline.unit != "epoch"
            hint = f"--per step if the decay is per training step; {hint}" if stepped else hint
    return RunWarning(code="first-dominates", message=f"{kept}: {cause}", hint=hint)


def _window_too_short(decay: Decay, found: Diagnostics, gap: float, timeline: Timeline) -> RunWarning:
    enough = two_digits(gap * math.log(2) / _WINDOWS_PER_GAP)
    fits = float(enough) <= float(half_life_for_first_share(timeline.span))
    longer = f"--half-life {enough}" if fits else f"{_half_life_for(timeline)}, the longest for these checkpoints"
    often = max(1, math.floor(_WINDOWS_PER_GAP / decay.complement))
    return RunWarning(
        code="window-too-short",
        message=(
            f"the window of {_units(1 / decay.complement, timeline)} is shorter than the {_units(gap, timeline)} "
            f"between checkpoints: the steps in between are lost, and the last checkpoint has {percent(found.last)}"
        ),
        hint=f"{longer}; save a checkpoint every {_units(often, timeline)}",
    )


def _unobserved_mass(weighting: Weighting, mass: float, timeline: Timeline) -> RunWarning:
    power = weighting.method.decay is None
    other = "a smaller --sigma-rel" if power else f"--init debias; or {_half_life_for(timeline)}"
    return RunWarning(
        code="unobserved-mass",
        message=f"{percent(mass)} of this average belongs to steps before the first checkpoint, which is used instead",
        hint=f"add earlier checkpoints, or that of step 0; {other}",
    )


def _window_not_filled(decay: Decay, timeline: Timeline, *, per_step: bool) -> Iterator[RunWarning]:
    window, have = 1 / decay.complement, timeline.span if per_step else timeline.count
    if window * (1 - 1e-9) <= have:
        return
    if per_step:
        span = f"the {_units(have, timeline)} that the checkpoints span"
        message, hint = f"the window of {_units(window, timeline)} is longer than {span}", _half_life_for(timeline)
    else:
        message = f"the window of {_named(decay)} is {_count(window)} checkpoints, and there are {have:,}"
        hint = f"--decay {decay_for_first_share(timeline.count - 1)}"
    yield RunWarning(code="window-not-filled", message=message, hint=f"{hint}; or more checkpoints")


def _named(decay: Decay) -> str:
    return f"decay {decay_text(decay)}" if decay.half_life is None else f"half-life {decay.half_life:g}"


def _half_life_for(timeline: Timeline) -> str:
    half_life = half_life_for_first_share(timeline.span)
    before = percent(2 ** (-timeline.span / float(half_life)))
    return f"--half-life {half_life} (then {before} is from before the first checkpoint)"


def _units(value: float, timeline: Timeline) -> str:
    return f"{_count(value)} {timeline.unit}{'' if value == 1 else 's'}"


def _count(value: float) -> str:
    """Format a number for people: whole from ten on, and where only the decay's rounding makes it uneven."""
    whole = round(value)
    return number(whole if value >= 10 or math.isclose(value, whole) else value)  # noqa: PLR2004
