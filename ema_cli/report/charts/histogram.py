"""How often numbers occur: bars between round numbers, by powers of ten if they span several, zeros on their own."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from ema_cli.record import record
from ema_cli.report.charts.axes import (
    ABOVE,
    BELOW,
    Scale,
    left_margin,
    level_axis,
    padded,
    spread_labels,
    thinned_labels,
    upright_axis,
)
from ema_cli.report.charts.canvas import LARGEST, Box, Size, known, path, sheet, units, wide_and_narrow
from ema_cli.report.charts.shades import power_text, powers_of
from ema_cli.report.charts.ticks import outer_ticks
from ema_cli.text import number

_MOST_BINS = 30
_UP_TICKS = 4
_FLAT = 0.7
"""Height of the plot as a part of the height of other charts."""
_ZERO_ROOM = 56.0
"""Width of the bin of zeros, with the gap to the others."""


@record
class Bins:
    """Bins next to each other, each between two bounds."""

    bounds: tuple[float, ...]
    """Increasing, one more than there are bins."""
    ticks: tuple[int, ...]
    """Which bounds have a label."""
    texts: tuple[str, ...]
    """Those labels."""

    def counts(self, values: Sequence[float]) -> list[int]:
        """Return how many numbers are in each bin; the last bin includes its upper bound."""
        found = [0] * (len(self.bounds) - 1)
        for value in values:
            found[min(max(bisect_right(self.bounds, value) - 1, 0), len(found) - 1)] += 1
        return found


def histogram(values: Sequence[float | None], *, x_label: str, y_label: str) -> str:
    """Draw how many numbers there are between round numbers.

    Args:
        values: the numbers; those without a value are not counted.
        x_label: what the numbers are, with their unit.
        y_label: what is counted, in the plural.

    """
    found = known(values)
    others = [value for value in found if value != 0]
    bins = _bins(others)
    counts = bins.counts(others) if others else []
    zeros = len(found) - len(others)
    sentence = f"{x_label} of {len(found):,} {y_label}"
    sentence += f": smallest {number(min(found))}, largest {number(max(found))}." if found else "."

    def draw(size: Size) -> str:
        ticks = outer_ticks(0, max(zeros, *counts, 1), _UP_TICKS, whole=True)
        left = left_margin(ticks.texts)
        plot = Box(left=left, right=size.width - 12, top=ABOVE, bottom=ABOVE + _FLAT * size.plot_height)
        up = Scale(low=0, high=ticks.values[-1], start=plot.bottom, stop=plot.top)
        inner = Box(left=left + (_ZERO_ROOM if zeros else 8), right=plot.right - 8, top=plot.top, bottom=plot.bottom)
        places = [inner.left + inner.width * k / max(1, len(counts)) for k in range(len(counts) + 1)]
        bars = _bars(bins, counts, places, up, y_label if size.has_tips else "")
        tick_places, words = [places[k] for k in bins.ticks] if others else [], list(bins.texts)
        if zeros:
            middle = plot.left + (_ZERO_ROOM - 16) / 2
            bars = path("bar zero-bar", _bar(middle - 10, middle + 10, zeros, up), f"0: {zeros:,} {y_label}") + bars
            words = ["0", *("" if word == "0" else word for word in words)]
            tick_places = [middle, *tick_places]
        kept = thinned_labels(tick_places, words, size.width)
        labels = spread_labels([tick_places[k] for k in kept], [words[k] for k in kept], size.width) or []
        axes = upright_axis(plot, up, ticks, y_label) + level_axis(plot, tick_places, labels, x_label)
        return sheet(size.name, size.width, plot.bottom + BELOW, axes + bars, sentence)

    return wide_and_narrow("histogram", draw)


def _bars(bins: Bins, counts: Sequence[int], places: Sequence[float], up: Scale, tip: str) -> str:
    drawn = ""
    for k, count in enumerate(counts):
        if count:
            words = tip and f"{number(bins.bounds[k])} to {number(bins.bounds[k + 1])}: {count:,} {tip}"
            drawn += path("bar series0", _bar(places[k] + 0.5, places[k + 1] - 0.5, count, up), words)
    return drawn


def _bar(left: float, right: float, count: int, up: Scale) -> str:
    top = min(up(count), up(0) - 1.5)
    return f"M{units(left)} {units(up(0))}V{units(top)}H{units(right)}V{units(up(0))}z"


def _bins(values: Sequence[float]) -> Bins:
    """Return bins for numbers other than zero: about as many as the cube root of their number times two."""
    if not values:
        return Bins(bounds=(0.0, 1.0), ticks=(), texts=())
    low, high = min(values), max(values)
    if (powers := powers_of(values)) is not None:
        return _by_powers(values, max(low, powers[0] / 1000), high)
    wanted = min(_MOST_BINS, max(10, math.ceil(2 * len(values) ** (1 / 3))))
    low, high = padded(0.0 if 0 < low < high / 4 else low, high)
    ticks = outer_ticks(low, high, wanted)
    every = tuple(range(len(ticks.values)))
    return Bins(bounds=ticks.values, ticks=every, texts=ticks.texts)


def _by_powers(values: Sequence[float], low: float, high: float) -> Bins:
    """Return bins of a whole number of powers of ten, or of a part of one; smaller numbers belong to the first one."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    wanted = min(_MOST_BINS, max(6, math.ceil(3 * len(values) ** (1 / 3))))
    parts = max(1, min(5, wanted // (last - first)))
    stride = max(1, -(-(last - first) // _MOST_BINS))
    steps = -(-(last - first) // stride) * parts
    bounds = [min(LARGEST, 10.0 ** min(300.0, first + stride * k / parts)) for k in range(steps + 1)]
    ticks = range(0, steps + 1, parts)
    texts = [power_text(first + stride * (k // parts)) for k in ticks]
    if min(values) < bounds[0] * (1 - 1e-9):
        bounds[0], texts[0] = min(values), ""
    return Bins(bounds=tuple(bounds), ticks=tuple(ticks), texts=tuple(texts))
