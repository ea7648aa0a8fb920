"""Numbers as shades: a scale of a few steps between round numbers, linear or by powers of ten, and its legend."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ema_cli.report.charts.axes import spread_labels, thinned_labels
from ema_cli.report.charts.canvas import known, path, text, units
from ema_cli.report.charts.lettering import FONT_SIZE, text_width
from ema_cli.report.charts.ticks import outer_ticks

LEVELS = 8
_DECADES = 1000.0
"""Numbers that differ by more than this factor get a scale by powers of ten."""
_BAR = 12
LEGEND_HEIGHT = _BAR + FONT_SIZE + 8
"""Height of the legend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shades:
    """A scale: shade k is for the numbers between two bounds."""

    bounds: tuple[float, ...]
    """Round numbers in increasing order, at least two."""
    texts: tuple[str, ...]
    """The bounds as text."""
    has_zero: bool
    """Whether zero has a shade of its own, because the bounds are powers of ten."""

    def kind(self, value: float) -> str:
        """Return the class of the shade of a number."""
        if self.has_zero and value <= 0:
            return "zero-shade"
        return self._kind_of(min(max(bisect_right(self.bounds, value) - 1, 0), len(self.bounds) - 2))

    def _kind_of(self, position: int) -> str:
        steps = len(self.bounds) - 2
        return f"level{round((LEVELS - 1) * position / steps) if steps else LEVELS // 2}"

    def legend(self, left: float, top: float, width: float) -> str:
        """Draw the shades beside each other, with the numbers between them; at most ``width`` wide."""
        own = text_width("0") + 16 if self.has_zero else 0.0
        side = (width - own) / (len(self.bounds) - 1)
        places = [left + own + side * k for k in range(len(self.bounds))]
        middle = units(top + _BAR / 2)
        drawn = path(f"shade bar-shade {'zero-shade'}", f"M{units(left)} {middle}h{units(own - 6)}") if own else ""
        drawn += text((left + (own - 6) / 2, top + _BAR + FONT_SIZE + 3), "0", "middle") if own else ""
        for k, place in enumerate(places[:-1]):
            drawn += path(f"shade bar-shade {self._kind_of(k)}", f"M{units(place)} {middle}h{units(side)}")
        kept = thinned_labels(places, self.texts, left + width + 10)
        labels = spread_labels([places[k] for k in kept], [self.texts[k] for k in kept], left + width + 10) or []
        return drawn + "".join(text((one.middle, top + _BAR + FONT_SIZE + 3), one.words, "middle") for one in labels)


def shades(values: Sequence[float | None], *, unit: str = "") -> Shades:
    """Return a scale for numbers: by powers of ten if those above zero differ by more than a factor of 1,000."""
    found = known(values) or [0.0]
    above = [value for value in found if value > 0]
    if above and min(found) >= 0 and max(above) / _DECADES > min(above):
        return _by_powers(min(above), max(above), has_zero=min(found) == 0, unit=unit)
    ticks = outer_ticks(min(0.0, *found, 0.0), max(0.0, *found, 0.0), LEVELS - 2, unit=unit)
    return Shades(bounds=ticks.values, texts=ticks.texts, has_zero=False)


def _by_powers(low: float, high: float, *, has_zero: bool, unit: str) -> Shades:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // LEVELS))
    exponents = range(first, first + stride * -(-(last - first) // stride) + 1, stride)
    texts = tuple(f"{power_text(exponent)}{unit}" for exponent in exponents)
    return Shades(
        bounds=tuple(float(f"1e{min(300, exponent)}") for exponent in exponents), texts=texts, has_zero=has_zero
    )


def power_text(exponent: int) -> str:
    """Return a power of ten as text: ``0.01``, ``1,000``, ``1e-9``."""
    if 0 <= exponent <= 5:  # noqa: PLR2004 - short enough to be written out
        return f"{10**exponent:,}"
    return f"{10.0**exponent:.{-exponent}f}" if -4 <= exponent < 0 else f"1e{exponent}"  # noqa: PLR2004
