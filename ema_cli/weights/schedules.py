"""Closed-form weights of the checkpoints in an average.

Input -> output: the number of checkpoints and a method -> one weight per checkpoint in fold order, all >= 0, sum 1.

    E_1 = theta_1,  E_n = d E_(n-1) + (1 - d) theta_n
    E_N = sum_i w_i theta_i,  w_1 = d^(N-1),  w_i = (1 - d) d^(N-i)  for i > 1

With ``debias`` the recurrence starts from zero and is divided by the weight it has gathered, 1 - d^N (Kingma & Ba
2015, section 3): w_i = (1 - d) d^(N-i) / (1 - d^N). ``uniform`` is SWA (Izmailov et al. 2018, arXiv 1803.05407).
"""

from __future__ import annotations

import math

from ema_cli.records import Method


def solve(method: Method, checkpoints: int) -> tuple[float, ...]:
    """Return the weights of ``checkpoints`` checkpoints under ``method``."""
    if method.decay is None:
        return uniform(checkpoints)
    return ema_debiased(checkpoints, method.decay) if method.init == "debias" else ema(checkpoints, method.decay)


def ema(checkpoints: int, decay: float) -> tuple[float, ...]:
    """Return the weights of the running EMA that starts at the first checkpoint."""
    later = [(1 - decay) * decay ** (checkpoints - i) for i in range(2, checkpoints + 1)]
    return (decay ** (checkpoints - 1), *later)


def ema_debiased(checkpoints: int, decay: float) -> tuple[float, ...]:
    """Return the weights of the EMA that starts at zero, divided by their sum."""
    if decay == 0:
        return (*[0.0] * (checkpoints - 1), 1.0)
    gathered = -math.expm1(checkpoints * math.log(decay))  # 1 - d^N without cancellation
    return tuple((1 - decay) * decay ** (checkpoints - i) / gathered for i in range(1, checkpoints + 1))


def uniform(checkpoints: int) -> tuple[float, ...]:
    """Return equal weights."""
    return (1 / checkpoints,) * checkpoints


def decay_from_half_life(half_life: float) -> float:
    """Return the decay under which a share has halved after ``half_life`` checkpoints: d = 2^(-1/H)."""
    return math.exp2(-1 / half_life)


def decay_for_first_share(checkpoints: int, share: float) -> float:
    """Return the decay that leaves ``share`` of the average with the first checkpoint: d = share^(1/(N-1))."""
    return math.pow(share, 1 / (checkpoints - 1))
