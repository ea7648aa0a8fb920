"""Functions that the closed forms need where their textbook form would cancel."""

from __future__ import annotations

import math
from collections.abc import Iterable

_TINY = 2.0**-60


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
    """Return ``e^-x h(x) = 1 - e^-x (1 + x)`` for x >= 0; it lies in [0, 1) however large x is."""
    return math.exp(-x) * remainder(x) if x < 1 else -math.expm1(-x) - x * math.exp(-x)


def normalized(weights: Iterable[float]) -> tuple[float, ...]:
    """Return weights divided by their correctly rounded sum."""
    listed = list(weights)
    total = math.fsum(listed)
    return tuple(weight / total for weight in listed)
