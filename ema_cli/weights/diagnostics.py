"""Numbers that describe an average: how many checkpoints count in it, its age, how it scales the updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ema_cli.record import record
from ema_cli.weights.methods import Decay, Method
from ema_cli.weights.reconstruction import part_before_first
from ema_cli.weights.timeline import Timeline, gaps

_BROWNIAN = {"ema": 1 / math.sqrt(12), "ema-hold": 1 / math.sqrt(3)}
"""Expected error divided by u, for a Brownian path that is assumed to be linear, or constant, between checkpoints."""
_ROUNDING = 1e-12


@record
class Diagnostics:
    """Numbers that describe the shares w_i of one average: effective checkpoints, mean age, learning-rate scale."""

    effective_checkpoints: float
    """1 / sum w_i^2 (Kish): the variance of averaged noise falls by this factor."""
    mean_age: float
    """sum w_i (t_N - t_i), in ``mean_age_unit``."""
    mean_age_unit: str
    """``step``, ``epoch``, ``token``, ``sample`` or ``checkpoint``."""
    first: float
    """Share of the first checkpoint."""
    last: float
    """Share of the last checkpoint."""
    largest: float
    """The largest share."""
    implied_lr: tuple[float, ...]
    """LR scale, W_i = sum_(j>=i) w_j: the factor by which the average scales the update that led to checkpoint i."""
    window_ratio_u: float | None = None
    """u = median gap x (1-d): how many windows of the EMA fit between two checkpoints. Per step only.

    The gap of a single checkpoint is taken as 1.
    """
    unobserved_mass: float | None = None
    """The part of the requested average before the first checkpoint: d^(T-t_1) or (t_1/T)^(gamma+1)."""
    predicted_error: float | None = None
    """Expected distance to the true per-step EMA, divided by the distance from the last checkpoint to it, at most 1.

    u/sqrt(12), or u/sqrt(3) for ``ema-hold``, with the effective gap in u. An estimate for a path that is Brownian
    between checkpoints; it does not cover the time before the first.
    """


def diagnose(method: Method, shares: Sequence[float], timeline: Timeline) -> Diagnostics:
    """Describe the shares that ``method`` gives the checkpoints of ``timeline``, one each, in fold order."""
    total = math.fsum(shares)
    decay = method.decay if method.uses_steps else None
    return Diagnostics(
        effective_checkpoints=total * total / math.fsum(w * w for w in shares),
        mean_age=math.fsum(w * age for w, age in zip(shares, timeline.ages(), strict=True)) / total,
        mean_age_unit=timeline.unit,
        first=shares[0],
        last=shares[-1],
        largest=max(shares),
        implied_lr=_implied_lr(shares, total),
        window_ratio_u=timeline.median_gap * decay.complement if decay else None,
        unobserved_mass=_unobserved_mass(method, timeline),
        predicted_error=_predicted_error(method, decay, timeline) if decay else None,
    )


def _predicted_error(method: Method, decay: Decay, timeline: Timeline) -> float:
    return min(1.0, effective_gap(decay, timeline) * decay.complement * _BROWNIAN[method.name])


def effective_gap(decay: Decay, timeline: Timeline) -> float:
    """Return the gap that the error depends on: the gap of equal spacing, or more if recent gaps are wide.

    A Brownian path leaves an error of variance k^2 D^3 / 12 in a gap D whose steps have the weight k each, so this is
    the root of ``sum_i d^(2 (T-t_i)) D_i^3 / sum_i d^(2 (T-t_i)) D_i``.
    """
    if timeline.steps is None or timeline.count == 1:
        return timeline.median_gap
    last = timeline.steps[-1]
    squares = [math.exp(-2 * decay.rate * (last - step)) if decay.value else 0.0 for step in timeline.steps[1:]]
    squares[-1] = 1.0
    pairs = list(zip(squares, gaps(timeline.steps), strict=True))
    return math.sqrt(math.fsum(s * gap**3 for s, gap in pairs) / math.fsum(s * gap for s, gap in pairs))


def _implied_lr(shares: Sequence[float], total: float) -> tuple[float, ...]:
    """Sum from the last checkpoint on; the total is 1 except for rounding."""
    most = 1.0 if math.isclose(total, 1, rel_tol=_ROUNDING) else math.inf
    return tuple(min(most, tail) for tail in accumulate(reversed(shares)))[::-1]


def _unobserved_mass(method: Method, timeline: Timeline) -> float | None:
    if not method.uses_steps or timeline.steps is None or timeline.after_live:
        return None
    if method.decay is not None:
        return math.exp(-method.decay.rate * timeline.span) if timeline.span else 1.0
    return part_before_first(timeline.steps, method.sigma_rel) if method.sigma_rel is not None else None
