"""Weights that depend on the number of checkpoints alone.

Input -> output: N and the parameters of a method -> one weight per checkpoint in fold order, all >= 0, sum 1.

    E_1 = theta_1,  E_n = d E_(n-1) + (1 - d) theta_n
    E_N = sum_i w_i theta_i,  w_1 = d^(N-1),  w_i = (1 - d) d^(N-i)  for i > 1

With ``debias`` the recurrence starts from zero and is divided by the weight it has gathered, 1 - d^N (Kingma & Ba
2015, section 3): w_i = (1 - d) d^(N-i) / (1 - d^N). ``uniform`` is SWA (Izmailov et al. 2018, arXiv 1803.05407).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.weights.methods import Decay, Init, Method
from ema_cli.weights.numbers import normalized


def ema(checkpoints: int, decay: Decay, init: Init = "first") -> tuple[float, ...]:
    """Return the weights of the running EMA: ``first`` starts at the first checkpoint, ``debias`` at zero."""
    powers = [decay.value ** (checkpoints - i) for i in range(1, checkpoints + 1)]
    first = powers[0] if init == "first" else decay.complement * powers[0]
    return normalized([first, *(decay.complement * power for power in powers[1:])])


def ema_warmup(checkpoints: int, method: Method) -> tuple[float, ...]:
    """Return the weights of the fold whose decay grows with the number n = 1, 2, ... of updates, up to d.

    ``tf``: d_n = (1 + n) / (10 + n), as ``tf.train.ExponentialMovingAverage(num_updates=n)`` takes it.
    ``inv-gamma``: d_n = 1 - (1 + n / inv_gamma)^-power, as in timm's and diffusers' EMA.
    """
    weights = []
    kept = 1.0
    for updates in range(checkpoints - 1, 0, -1):
        decay, complement = _warm_decay(updates, method)
        weights.append(kept * complement)
        kept *= decay
    return normalized([kept, *reversed(weights)])


def _warm_decay(updates: int, method: Method) -> tuple[float, float]:
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
    """Return the weights of the user, divided by their sum unless told not to.

    Raises:
        UsageError: they sum to zero, so that there is nothing to average.

    """
    if not any(weights):
        raise UsageError("the weights of the checkpoints that are left sum to zero")
    return normalized(weights) if normalize else tuple(weights)
