"""Weights from steps: the average over every training step, reconstructed from the few that were saved.

Input -> output: t_1 < ... < t_N and the parameters of a method -> one weight per checkpoint, all >= 0, sum 1.

Between two checkpoints the weights of the model are assumed to be on the line between them, or equal to those of the
next checkpoint (``hold``). The average over all steps s in (t_(i-1), t_i] is then a weighted sum of the two ends:

    E(t_i) = d^D E(t_(i-1)) + a theta_(i-1) + b theta_i,    D = t_i - t_(i-1),  T = t_N
    w_i = d^(T-t_i) b_i + d^(T-t_(i+1)) a_(i+1)

For the per-step EMA, ``b = (1-d)/D sum_(j=1..D) j d^(D-j)`` and ``a = (1-d) sum_(j=1..D) d^(D-j) - b``. Written out,
those cancel for d near 1; with lambda = -ln d, z = lambda D, h(x) = e^x - 1 - x and k(x) = e^-x h(x), all >= 0,

    b = (D k(lambda) + d h(-z)) / (D (1-d)),    a = (d k(z) - D e^-z k(lambda)) / (D (1-d))

hold their digits for 1-d from 1e-16 to 1 and any D. Lines are the best guess for a path that is Brownian between the
checkpoints: its conditional mean is linear, so no other weights have a smaller expected squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ema_cli.weights.methods import Decay, Init
from ema_cli.weights.timeline import gaps

_NEWTON_STEPS = 200
_TINY = 2.0**-60


def ema_linear(steps: Sequence[int], decay: Decay, init: Init = "first") -> tuple[float, ...]:
    """Return the weights of the per-step EMA of the piecewise-linear path through the checkpoints.

    ``first``: the path is theta_1 before t_1; ``debias``: only the steps from t_1 to T count.
    """
    if decay.value == 0:
        return _last_alone(len(steps))
    kept = _kept(steps, decay)
    weights = [_initial(kept[0], decay, init)]
    for gap, left in zip(gaps(steps), kept[1:], strict=True):
        a, b = _line(gap, decay)
        weights[-1] += left * a
        weights.append(left * b)
    return normalized(weights)


def ema_hold(steps: Sequence[int], decay: Decay, init: Init = "first") -> tuple[float, ...]:
    """Return the weights of the EMA with d^gap: the per-step EMA of a path that is constant between checkpoints."""
    if decay.value == 0:
        return _last_alone(len(steps))
    kept = _kept(steps, decay)
    later = [left * -math.expm1(-decay.rate * gap) for gap, left in zip(gaps(steps), kept[1:], strict=True)]
    return normalized([_initial(kept[0], decay, init), *later])


def _last_alone(checkpoints: int) -> tuple[float, ...]:
    return (*[0.0] * (checkpoints - 1), 1.0)


def _kept(steps: Sequence[int], decay: Decay) -> list[float]:
    """Return d^(T - t_i): the part of a weight at t_i that is left at T."""
    return [math.exp(-decay.rate * (steps[-1] - step)) for step in steps]


def _initial(kept: float, decay: Decay, init: Init) -> float:
    """Return the initial weight of theta_1: all steps before, or only the step t_1."""
    return kept if init == "first" else decay.complement * kept


def _line(gap: int, decay: Decay) -> tuple[float, float]:
    """Return a and b of one gap of D steps."""
    if gap == 1:
        return 0.0, decay.complement
    d, rate = decay.value, decay.rate
    z, scale = rate * gap, gap * decay.complement
    b = (gap * decayed_remainder(rate) + d * remainder(-z)) / scale
    a = (d * decayed_remainder(z) - gap * math.exp(-z) * decayed_remainder(rate)) / scale
    return a, b


def uniform_time(steps: Sequence[int]) -> tuple[float, ...]:
    """Return the weights of the trapezoid rule: the mean over time of the piecewise-linear path."""
    if len(steps) == 1:
        return (1.0,)
    around = [0, *gaps(steps), 0]
    return normalized((before + after) / (2 * (steps[-1] - steps[0])) for before, after in pairwise(around))


def power(steps: Sequence[int], sigma_rel: float) -> tuple[float, ...]:
    """Return the weights of a power-function profile over the piecewise-linear path (Karras et al. 2024, section 3.1).

    The profile is ``f(t) = (gamma+1) t^gamma / T^(gamma+1)`` over [0, T], with ``F(t) = (t/T)^p``, p = gamma + 1, the
    part of it before t. The part before t_1 goes to theta_1. For the gap from s to t, with q = ln(t/s),

        b = F(t) (h(-(p+1)q) - (p+1) h(-q)) / ((p+1) (1 - s/t)),    a = F(t) - F(s) - b

    The steps are counted from the beginning of training; ``sigma_rel``, the standard deviation of the profile over T,
    is at most 1/sqrt(12).
    """
    if len(steps) == 1:
        return (1.0,)
    p = gamma_from_sigma_rel(sigma_rel) + 1
    parts = [_part_before(step, steps, p) for step in steps]
    weights = [parts[0]]
    for start, gap, part in zip(steps, gaps(steps), parts[1:], strict=False):
        a, b = _profile_line(start, gap, p)
        weights[-1] += part * a
        weights.append(part * b)
    return normalized(weights)


def part_before_first(steps: Sequence[int], sigma_rel: float) -> float:
    """Return the part of a power-function profile before the first checkpoint."""
    return _part_before(steps[0], steps, gamma_from_sigma_rel(sigma_rel) + 1)


def _part_before(step: int, steps: Sequence[int], p: float) -> float:
    """Return F(t) = (t/T)^p."""
    return math.exp(-p * math.log1p((steps[-1] - step) / step)) if step else 0.0


def _profile_line(start: int, gap: int, p: float) -> tuple[float, float]:
    """Return a and b of one gap, over F at its end."""
    if start == 0:
        return 1 / (p + 1), p / (p + 1)
    q = math.log1p(gap / start)
    x = (p + 1) * q
    scale = (p + 1) * -math.expm1(-q)
    b = (remainder(-x) - (p + 1) * remainder(-q)) / scale
    a = (decayed_remainder(x) - (p + 1) * math.exp(-p * q) * decayed_remainder(q)) / scale
    return a, b


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent of the profile: the largest root of (g+2)^2 (g+3) = (g+1) / sigma_rel^2.

    Newton's method from 1/sigma_rel, which is above that root; the cubic is convex there, so it only descends.
    """
    s = sigma_rel**-2
    gamma = 1 / sigma_rel
    for _ in range(_NEWTON_STEPS):
        value = ((gamma + 7) * gamma + 16 - s) * gamma + 12 - s
        below = gamma - value / ((3 * gamma + 14) * gamma + 16 - s)
        if below >= gamma:
            break
        gamma = below
    return max(gamma, 0.0)


def remainder(x: float) -> float:
    """Return ``h(x) = e^x - 1 - x``, which is never negative, to full relative precision."""
    if abs(x) >= 1:
        return math.expm1(x) - x
    term = total = x * x / 2
    order = 2
    while abs(term) > _TINY * total:
        order += 1
        term *= x / order
        total += term
    return total


def decayed_remainder(x: float) -> float:
    """Return ``e^-x h(x) = 1 - e^-x (1 + x)`` for x >= 0; the result is in [0, 1) for any x."""
    return math.exp(-x) * remainder(x) if x < 1 else -math.expm1(-x) - x * math.exp(-x)


def normalized(weights: Iterable[float]) -> tuple[float, ...]:
    """Return weights divided by their correctly rounded sum."""
    listed = list(weights)
    total = math.fsum(listed)
    return tuple(weight / total for weight in listed)
