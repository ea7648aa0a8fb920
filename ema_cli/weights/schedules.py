"""Weights in closed form: from the number of checkpoints or, for ``lr-decay``, from their steps.

Input -> output: N or t_1 < ... < t_N, and the parameters of a method -> one weight per checkpoint in fold order, all
>= 0, sum 1.

    E_1 = theta_1,  E_n = d E_(n-1) + (1 - d) theta_n
    E_N = sum_i w_i theta_i,  w_1 = d^(N-1),  w_i = (1 - d) d^(N-i)  for i > 1

With ``debias`` the recurrence starts from zero and is divided by the sum of its weights, 1 - d^N (Kingma & Ba
2015, section 3): w_i = (1 - d) d^(N-i) / (1 - d^N). ``uniform`` is SWA (Izmailov et al. 2018, arXiv 1803.05407).

``lr-decay`` gives each update the factor that a falling learning rate would have given it (WSM, arXiv 2507.17634).
By summation by parts, sum_i w_i theta_i = theta_1 + sum_(i>1) W_i (theta_i - theta_(i-1)) with W_i = sum_(j>=i) w_j:
W_i scales the update that led to checkpoint i. Choosing W_i = f(x_i), 1 at the first checkpoint and falling, gives

    w_i = f(x_i) - f(x_(i+1)),  w_N = f(x_N),    x_i = (t_i - t_1) / (T - t_1 + mean gap)

so f would reach 0 one gap after the last checkpoint, and x_N = (N-1)/N. At equal spacing, ``1-sqrt`` gives the weights
that Megatron-LM's ``weighted_merge`` calls minus-sqrt. Each difference is written so that nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.weights.methods import Decay, Init, Method, Shape
from ema_cli.weights.reconstruction import normalized
from ema_cli.weights.timeline import gaps


def ema(checkpoints: int, decay: Decay, init: Init = "first") -> tuple[float, ...]:
    """Return the weights of the running EMA: ``first`` starts at the first checkpoint, ``debias`` at zero."""
    powers = [decay.value ** (checkpoints - i) for i in range(1, checkpoints + 1)]
    first = powers[0] if init == "first" else decay.complement * powers[0]
    return normalized([first, *(decay.complement * power for power in powers[1:])])


def ema_warmup(checkpoints: int, method: Method) -> tuple[float, ...]:
    """Return the weights of an EMA with a decay that grows with the number n = 1, 2, ... of updates, up to d.

    ``tf``: d_n = (1 + n) / (10 + n), as in ``tf.train.ExponentialMovingAverage(num_updates=n)``.
    ``inv-gamma``: d_n = 1 - (1 + n / inv_gamma)^-power, as in timm's and diffusers' EMA.
    """
    weights = []
    kept = 1.0
    for updates in range(checkpoints - 1, 0, -1):
        decay, complement = warm_decay(updates, method)
        weights.append(kept * complement)
        kept *= decay
    return normalized([kept, *reversed(weights)])


def warm_decay(updates: int, method: Method) -> tuple[float, float]:
    """Return d_n and 1 - d_n, each with all its digits."""
    if method.warmup == "inv-gamma":
        rate = (method.power or 0) * math.log1p(updates / (method.inv_gamma or 1))
        decay, complement = -math.expm1(-rate), math.exp(-rate)
    else:
        decay, complement = (1 + updates) / (10 + updates), 9 / (10 + updates)
    cap = method.decay
    return (cap.value, cap.complement) if cap is not None and cap.complement > complement else (decay, complement)


def uniform(checkpoints: int) -> tuple[float, ...]:
    """Return equal weights."""
    return (1 / checkpoints,) * checkpoints


def ramp(checkpoints: int) -> tuple[float, ...]:
    """Return weights proportional to 1, 2, ..., N."""
    whole = checkpoints * (checkpoints + 1) // 2
    return tuple(i / whole for i in range(1, checkpoints + 1))


def manual(weights: Sequence[float], *, normalize: bool) -> tuple[float, ...]:
    """Return the weights of the user, divided by their sum if ``normalize``.

    Raises:
        UsageError: all weights are zero.

    """
    if not any(weights):
        raise UsageError("the weights of the selected checkpoints sum to zero")
    return normalized(weights) if normalize else tuple(weights)


def lr_decay(steps: Sequence[int], shape: Shape) -> tuple[float, ...]:
    """Return the weights of checkpoints at increasing ``steps`` for a learning rate that falls with ``shape``."""
    count = len(steps)
    if count == 1:
        return (1.0,)
    whole = count * (steps[-1] - steps[0])  # (N-1) times the length over which the rate falls to 0
    places = [(count - 1) * (step - steps[0]) / whole for step in steps] + [1.0]
    falls = [(count - 1) * gap / whole for gap in gaps(steps)] + [1 / count]
    return normalized(
        _drop(shape, before, after, fall) for before, after, fall in zip(places, places[1:], falls, strict=False)
    )


def _drop(shape: Shape, before: float, after: float, fall: float) -> float:
    """Return f(before) - f(after), where after = before + fall."""
    if shape == "linear":  # f = 1 - x
        return fall
    if shape == "cosine":  # f = (1 + cos pi x) / 2
        middle = min(before + after, 2 - before - after)  # sin(pi m/2) is small at both ends
        return math.sin(math.pi * middle / 2) * math.sin(math.pi * fall / 2)
    return fall / (math.sqrt(before) + math.sqrt(after))  # f = 1 - sqrt(x)
