"""Weights that do to the updates what a falling learning rate would have done (WSM, arXiv 2507.17634).

By summation by parts, sum_i w_i theta_i = theta_1 + sum_(i>1) W_i (theta_i - theta_(i-1)) with W_i = sum_(j>=i) w_j:
W_i scales the update that led to checkpoint i. Choosing W_i = f(x_i), 1 at the first checkpoint and falling, gives

    w_i = f(x_i) - f(x_(i+1)),  w_N = f(x_N),    x_i = (t_i - t_1) / (T - t_1 + mean gap)

so f would reach 0 one gap after the last checkpoint, and x_N = (N-1)/N. At equal spacing, ``1-sqrt`` gives the weights
that Megatron-LM's ``weighted_merge`` calls minus-sqrt. Each difference is written so that nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ema_cli.weights.methods import Shape
from ema_cli.weights.numbers import normalized
from ema_cli.weights.timeline import gaps


def lr_decay(steps: Sequence[int], shape: Shape) -> tuple[float, ...]:
    """Return the weights of checkpoints at ``steps``, growing, under a learning rate that falls as ``shape`` says."""
    count = len(steps)
    if count == 1:
        return (1.0,)
    whole = count * (steps[-1] - steps[0])  # (N-1) times the length over which the rate falls to 0
    places = [(count - 1) * (step - steps[0]) / whole for step in steps] + [1.0]
    falls = [(count - 1) * gap / whole for gap in gaps(steps)] + [1 / count]
    drop = _DROPS[shape]
    return normalized(drop(before, after, fall) for before, after, fall in zip(places, places[1:], falls, strict=False))


def _linear(_before: float, _after: float, fall: float) -> float:
    """F = 1 - x."""
    return fall


def _cosine(before: float, after: float, fall: float) -> float:
    """F = (1 + cos pi x) / 2."""
    middle = min(before + after, 2 - before - after)  # sin(pi m/2) is small at both ends
    return math.sin(math.pi * middle / 2) * math.sin(math.pi * fall / 2)


def _minus_sqrt(before: float, after: float, fall: float) -> float:
    """F = 1 - sqrt(x)."""
    return fall / (math.sqrt(before) + math.sqrt(after))


_DROPS: dict[Shape, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "1-sqrt": _minus_sqrt,
}
"""f(x) - f(x + fall)."""
