"""From a method and the places of the checkpoints in training to their weights: which formula is whose."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.weights.lr_decay import lr_decay
from ema_cli.weights.methods import Decay, Method
from ema_cli.weights.reconstruction import ema_hold, ema_linear, power, uniform_time
from ema_cli.weights.schedules import ema, ema_warmup, manual, ramp, uniform
from ema_cli.weights.timeline import Timeline


def solve(method: Method, timeline: Timeline) -> tuple[float, ...]:
    """Return the weights of the checkpoints of ``timeline`` under ``method``: float64, all >= 0, sum 1.

    Only ``manual`` weights that are not to be normalised keep the sum that the user gave them.

    Raises:
        UsageError: the method needs steps or weights by hand, and there are none.

    """
    if method.uses_steps:
        return _from_steps(method, _steps(method, timeline))
    match method.name:
        case "ema":
            return ema(timeline.count, _decay(method), method.init or "first")
        case "ema-warmup":
            return ema_warmup(timeline.count, method)
        case "ramp":
            return ramp(timeline.count)
        case "manual":
            return manual(_by_hand(timeline), normalize=bool(method.normalize))
        case _:
            return uniform(timeline.count)


def _from_steps(method: Method, steps: Sequence[int]) -> tuple[float, ...]:
    match method.name:
        case "ema":
            return ema_linear(steps, _decay(method), method.init or "first")
        case "ema-hold":
            return ema_hold(steps, _decay(method), method.init or "first")
        case "power":
            assert method.sigma_rel is not None  # noqa: S101 - a power profile is made with one
            return power(steps, method.sigma_rel)
        case "lr-decay":
            return lr_decay(steps, method.shape or "1-sqrt")
        case _:
            return uniform_time(steps)


def _decay(method: Method) -> Decay:
    assert method.decay is not None  # noqa: S101 - an EMA is made with one
    return method.decay


def _by_hand(timeline: Timeline) -> Sequence[float]:
    if timeline.by_hand is None:
        raise UsageError("--method manual has no weights", hint="--weights 1,2,3; or name each CKPT:WEIGHT")
    return timeline.by_hand


def _steps(method: Method, timeline: Timeline) -> Sequence[int]:
    if timeline.steps is not None:
        return timeline.steps
    asked = f"--method {method.name}" + (" --per step" if method.name == "ema" else "")
    raise UsageError(
        f"{asked} needs the training step of every checkpoint, and the checkpoints are not in the order of known "
        "steps (steps-unknown)",
        hint="give the steps with --steps 100,200,...; or weigh per checkpoint: --per checkpoint",
    )
