"""Round numbers for an axis, 1, 2 or 5 times a power of ten, and their texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.record import record

_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_FIRST_SUFFIX = 1e5
"""Smaller numbers are written out: 20,000."""
_PLAIN = 1e-3, 1e15
"""Numbers outside of these have an exponent."""
_MOST_DECIMALS = 3
"""Decimals before a suffix; numbers that need more are written out."""


@record
class Ticks:
    """Round numbers at equal distances, each with its text."""

    values: tuple[float, ...]
    texts: tuple[str, ...]


@record
class Step:
    """The distance of ticks: ``factor * 10 ** exponent``."""

    factor: int
    exponent: int

    def times(self, count: int) -> float:
        """Return a multiple, rounded once."""
        count *= self.factor
        return float(count * 10**self.exponent) if self.exponent >= 0 else count / 10**-self.exponent


def round_step(span: float, most: int, *, whole: bool = False) -> Step:
    """Return the smallest round step that divides ``span`` > 0 into at most ``most`` parts.

    Args:
        span: the length of the axis.
        most: number of parts.
        whole: whether the step must be a whole number.

    """
    exponent = math.floor(math.log10(span / most))
    exponent = max(exponent, 0) if whole else exponent
    for power in (exponent, exponent + 1):
        for factor in (1, 2, 5):
            step = Step(factor=factor, exponent=power)
            if span / step.times(1) <= most * (1 + 1e-9):
                return step
    return Step(factor=1, exponent=exponent + 2)


def inner_ticks(low: float, high: float, most: int, *, whole: bool = False, unit: str = "") -> Ticks:
    """Return at most ``most`` + 1 ticks between two numbers; of two equal numbers, that number."""
    if high - low <= abs(high) * 1e-12:
        return Ticks(values=(low,), texts=(_one(low, unit),))
    step = round_step(high - low, most, whole=whole)
    first = math.ceil(low / step.times(1) - 1e-9)
    last = math.floor(high / step.times(1) + 1e-9)
    return _multiples(step, first, max(first, last), unit)


def outer_ticks(low: float, high: float, most: int, *, whole: bool = False, unit: str = "") -> Ticks:
    """Return at most ``most`` + 2 ticks, the first at or below ``low`` and the last at or above ``high``."""
    span = high - low if high - low > abs(high) * 1e-12 else abs(high) or 1.0
    step = round_step(span, most, whole=whole)
    first = math.floor(low / step.times(1) + 1e-9)
    last = math.ceil(high / step.times(1) - 1e-9)
    return _multiples(step, first, max(first + 1, last), unit)


def _multiples(step: Step, first: int, last: int, unit: str) -> Ticks:
    values = tuple(step.times(count) for count in range(first, last + 1))
    texts = tuple(f"{text}{unit}" for text in _texts(values, step))
    return Ticks(values=values, texts=texts)


def _texts(values: Sequence[float], step: Step) -> list[str]:
    largest = max(map(abs, values))
    if largest and not _PLAIN[0] <= largest < _PLAIN[1]:
        power = math.floor(math.log10(largest))
        digits = min(8, max(0, power - step.exponent))
        return [f"{value / 10.0**power:.{digits}f}e{power}" if value else "0" for value in values]
    size, suffix = next((pair for pair in _SUFFIXES if largest >= max(pair[0], _FIRST_SUFFIX)), (1.0, ""))
    decimals = max(0, round(math.log10(size)) - step.exponent)
    if suffix and decimals <= _MOST_DECIMALS:
        return [f"{value / size:,.{decimals}f}{suffix}" if value else "0" for value in values]
    return [f"{value:,.{max(0, -step.exponent)}f}" if value else "0" for value in values]


def scientific(value: float, digits: int) -> str:
    """Return a number with an exponent, without needless characters: ``1e-5``, ``2.5e20``."""
    if not value:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _one(value: float, unit: str) -> str:
    """Return the text of a single number on an axis."""
    if value and not _PLAIN[0] <= abs(value) < _PLAIN[1]:
        return f"{scientific(value, 2)}{unit}"
    return f"{value:,.0f}{unit}" if value == round(value) else f"{value:,.4g}{unit}"
