"""The parameters that leave the first checkpoint a small share, as text that can be typed."""

from __future__ import annotations

import math

SMALL_SHARE = 0.1
"""Of the first checkpoint: little enough that the average does not depend on where the series was begun."""


def decay_for_first_share(gaps: int) -> str:
    """Return the decay per checkpoint that leaves a tenth after ``gaps`` gaps: d^(N-1) = 1/10."""
    return short_decay(math.pow(SMALL_SHARE, 1 / gaps))


def half_life_for_first_share(span_steps: int) -> str:
    """Return the half-life that leaves a tenth after ``span_steps`` steps: 2^(-(T-t_1)/H) = 1/10."""
    return two_digits(span_steps * math.log(2) / -math.log(SMALL_SHARE))


def short_decay(decay: float) -> str:
    """Return a decay as text that keeps two digits of 1 - d, so that it never reads as 1."""
    digits = 1 - math.floor(math.log10(1 - decay))
    return f"{decay:.{digits}f}".rstrip("0")


def two_digits(value: float) -> str:
    """Return a positive number rounded to two digits, without an exponent."""
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):.{max(digits, 0)}f}"
