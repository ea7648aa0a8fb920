"""Numbers as shades of a color, linear or by powers of ten, and the legend of a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ema_cli.record import record
from ema_cli.report.charts.axes import padded, spread_labels, thinned_labels
from ema_cli.report.charts.canvas import known, path, text, units
from ema_cli.report.charts.lettering import FONT_SIZE, text_width
from ema_cli.report.charts.ticks import Ticks, inner_ticks

LEVELS = 12
_ZERO_SHADE = "zero-shade"
_BAR = 12
_MOST_TICKS = 6
_POWERS_FROM = 30.0
"""Numbers are shown by powers of ten if a quarter of them is smaller than the largest by this factor."""
LEGEND_HEIGHT = _BAR + FONT_SIZE + 9
"""Height of the legend."""


@record
class Shades:
    """A scale: the shades are for equal parts between two numbers, or between their logarithms."""

    low: float
    high: float
    is_by_powers: bool
    has_zero: bool
    """Whether zero has a shade of its own, because the scale is by powers of ten."""
    ticks: Ticks
    """Round numbers between ``low`` and ``high``."""

    def kind(self, value: float) -> str:
        """Return the class of the shade of a number."""
        if self.is_by_powers and value <= 0:
            return _ZERO_SHADE
        return f"level{min(LEVELS - 1, int(LEVELS * self._part(value)))}"

    def _part(self, value: float) -> float:
        """Return the place of a number in the scale, from 0 to 1."""
        low, high = self.low, self.high
        if self.is_by_powers:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def legend(self, left: float, top: float, width: float) -> str:
        """Draw the shades beside each other, with the numbers that they are for; at most ``width`` wide."""
        own = text_width("0") + 14 if self.has_zero else 0.0
        side = (width - own) / LEVELS
        middle = units(top + _BAR / 2)
        drawn = path(f"shade bar-shade {_ZERO_SHADE}", f"M{units(left)} {middle}h{units(own - 6)}") if own else ""
        for k in range(LEVELS):
            drawn += path(f"shade bar-shade level{k}", f"M{units(left + own + side * k)} {middle}h{units(side)}")
        places = [left + own + (width - own) * self._part(value) for value in self.ticks.values]
        texts = list(self.ticks.texts)
        if own:
            places, texts = [left + (own - 6) / 2, *places], ["0", *texts]
        kept = thinned_labels(places, texts, left + width + 12)
        labels = spread_labels([places[k] for k in kept], [texts[k] for k in kept], left + width + 12) or []
        marks = path("axis", "".join(f"M{units(place)} {units(top + _BAR)}v3" for place in places[bool(own) :]))
        below = top + _BAR + FONT_SIZE + 4
        return drawn + marks + "".join(text((one.middle, below), one.words, "middle") for one in labels)


def powers_of(values: Sequence[float]) -> tuple[float, float] | None:
    """Return where a scale by powers of ten begins and ends, if the numbers, none below zero, span several.

    It begins where one number above zero in twenty is smaller: a few that are almost zero do not stretch it.
    """
    above = sorted(value for value in values if value > 0)
    if not above or min(values) < 0 or above[-1] / _POWERS_FROM < above[len(above) // 4]:
        return None
    return above[len(above) // 20], above[-1]


def shades(values: Sequence[float | None], *, unit: str = "") -> Shades:
    """Return a scale for numbers, with what follows those of the legend."""
    found = sorted(known(values)) or [0.0]
    if (powers := powers_of(found)) is not None:
        low, high = powers
        ticks = power_ticks(low, high, unit)
        return Shades(low=low, high=high, is_by_powers=True, has_zero=found[0] == 0, ticks=ticks)
    low, high = padded(min(0.0, found[0]), max(0.0, found[-1]))
    low, high = (0.0, 1.0) if not any(found) else (low, high)
    ticks = inner_ticks(low, high, _MOST_TICKS, unit=unit)
    return Shades(low=low, high=high, is_by_powers=False, has_zero=False, ticks=ticks)


def power_ticks(low: float, high: float, unit: str = "") -> Ticks:
    """Return the powers of ten between two numbers."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    stride = max(1, len(exponents) // _MOST_TICKS)
    kept = exponents[::stride]
    return Ticks(values=tuple(10.0**k for k in kept), texts=tuple(f"{power_text(k)}{unit}" for k in kept))


def power_text(exponent: int) -> str:
    """Return a power of ten as text: ``0.01``, ``1,000``, ``1e-9``."""
    if 0 <= exponent <= 5:  # noqa: PLR2004 - short enough to be written out
        return f"{10**exponent:,}"
    return f"{10.0**exponent:.{-exponent}f}" if -4 <= exponent < 0 else f"1e{exponent}"  # noqa: PLR2004
