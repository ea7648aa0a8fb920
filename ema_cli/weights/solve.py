"""From a method and the steps of the checkpoints to their weights; and the two factors of a continued average.

An average of N checkpoints is made from an average of the first M of them as follows. With A = sum_(i<=M) v_i theta_i
known and sum_i w_i theta_i wanted, A can be continued exactly when the first weights keep their proportions,
``w_i = c v_i`` for i < M; then

    sum_i w_i theta_i = c A + e theta_M + sum_(i>M) w_i theta_i,    e = w_M - c v_M

Methods that draw a line from theta_M to theta_(M+1) give theta_M more than it had before, e > 0; for the others e = 0.
c and e are computed from the weights themselves, so this holds for any method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.weights.methods import Decay, Method
from ema_cli.weights.reconstruction import ema_hold, ema_linear, power, uniform_time
from ema_cli.weights.schedules import ema, ema_warmup, lr_decay, manual, ramp, uniform
from ema_cli.weights.timeline import Timeline

_ROUNDING = 1e-12
"""Relative difference allowed between two ways to compute one weight."""
_LAST_DIGITS = 8 * math.ulp(0)
"""Absolute error of weights near the smallest float64, which have lost digits."""


def solve(method: Method, timeline: Timeline) -> tuple[float, ...]:
    """Return the weights of the checkpoints of ``timeline`` under ``method``: float64, all >= 0, sum 1.

    Only ``manual`` weights with ``--no-normalize`` keep their sum.

    Raises:
        UsageError: the method needs steps or weights of the user, and there are none.

    """
    steps = _steps(method, timeline) if method.uses_steps else ()
    init = method.init or "first"
    match method.name:
        case "ema":
            decay = _decay(method)
            shares = ema_linear(steps, decay, init) if method.uses_steps else ema(timeline.count, decay, init)
        case "ema-hold":
            shares = ema_hold(steps, _decay(method), init)
        case "ema-warmup":
            shares = ema_warmup(timeline.count, method)
        case "uniform":
            shares = uniform(timeline.count)
        case "uniform-time":
            shares = uniform_time(steps)
        case "ramp":
            shares = ramp(timeline.count)
        case "power":
            assert method.sigma_rel is not None  # noqa: S101 - a power profile has a width
            shares = power(steps, method.sigma_rel)
        case "lr-decay":
            shares = lr_decay(steps, method.shape or "1-sqrt")
        case "manual":
            shares = manual(_given_weights(timeline), normalize=bool(method.normalize))
    return shares


def _decay(method: Method) -> Decay:
    assert method.decay is not None  # noqa: S101 - an EMA has a decay
    return method.decay


def _given_weights(timeline: Timeline) -> Sequence[float]:
    if timeline.given_weights is None:
        raise UsageError("--method manual needs weights", hint="--weights 1,2,3; or name each CKPT:WEIGHT")
    return timeline.given_weights


def _steps(method: Method, timeline: Timeline) -> Sequence[int]:
    if timeline.steps is not None:
        return timeline.steps
    asked = f"--method {method.name}" + (" --per step" if method.name == "ema" else "")
    raise UsageError(
        f"{asked} needs the training step of every checkpoint, but the steps are unknown or not in order "
        "(steps-unknown)",
        hint="give the steps with --steps 100,200,...; or use --per checkpoint",
    )


def continuation_factors(before: Sequence[float], full: Sequence[float]) -> tuple[float, float] | None:
    """Return c and e, ``None`` if the average cannot be continued.

    ``before`` are v, the weights of the first M checkpoints alone; ``full`` are w, the weights of all, at least M. From
    A = sum_(i<=M) v_i theta_i the average of all is

        sum_i w_i theta_i = c A + e theta_M + sum_(i>M) w_i theta_i,    e = w_M - c v_M

    if the earlier weights keep their proportions: w_i = c v_i for i < M. Methods that draw a line from theta_M to
    theta_(M+1) give theta_M more than before, e > 0; the others do not look back, e = 0.
    """
    *older, last = zip(before, full[: len(before)], strict=True)
    largest, its_share = max(older, default=last)
    if largest == 0:
        return last[1] / last[0], 0.0
    scale = its_share / largest
    doubt = _LAST_DIGITS / largest  # of the scale
    if any(abs(w - scale * v) > _ROUNDING * its_share + doubt * v + _LAST_DIGITS for v, w in older):
        return None
    rest = last[1] - scale * last[0]
    if abs(rest) <= _ROUNDING * last[1] + doubt * last[0] + _LAST_DIGITS:
        precise = doubt <= _ROUNDING * scale  # otherwise all weights but the last are near the smallest float64
        return scale if precise else last[1] / last[0], 0.0
    return (scale, rest) if rest > 0 else None
