"""Axes: from numbers to places, with ticks that do not overlap, subtle lines and labels."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.record import record
from ema_cli.report.charts.canvas import LARGEST, Box, path, text, units
from ema_cli.report.charts.lettering import FONT_SIZE, ROW, shortened, text_width
from ema_cli.report.charts.ticks import Ticks, inner_ticks

_GAP = 10
"""Least distance between two labels of ticks."""
_MOST_TICKS = 10


@record
class Scale:
    """A linear map from numbers in [low, high] to places in [start, stop]; numbers outside are drawn at the edge."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the place of a number; the middle if there is only one number."""
        span = self.high - self.low
        part = (value - self.low) / span if span > 0 else 0.5
        return self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start)


def padded(low: float, high: float) -> tuple[float, float]:
    """Return a range that is not empty: around a single number, half of it to each side."""
    if high - low > max(abs(low), abs(high)) * 1e-12:
        return low, high
    around = abs(low) / 2 or 1.0
    return max(-LARGEST, low - around), min(LARGEST, high + around)


@record
class TickLabel:
    """The label of a tick on a horizontal axis."""

    middle: float
    """Where it is written: at its tick, or as near as the edge of the chart allows."""
    words: str


def spread_labels(places: Sequence[float], texts: Sequence[str], width: float) -> list[TickLabel] | None:
    """Return the labels of ticks inside a chart of some width; ``None`` if they would overlap."""
    labels: list[TickLabel] = []
    end = -float(_GAP)
    for place, words in zip(places, texts, strict=True):
        half = text_width(words) / 2
        middle = min(max(place, half), width - half)
        if middle - half < end + _GAP or half > width / 2:
            return None
        labels.append(TickLabel(middle=middle, words=words))
        end = middle + half
    return labels


def fitting_ticks(scale: Scale, width: float, *, whole: bool = False) -> tuple[Ticks, list[TickLabel]]:
    """Return as many ticks as a horizontal axis has room for, and their labels."""
    for most in range(_MOST_TICKS, 0, -1):
        ticks = inner_ticks(scale.low, scale.high, most, whole=whole)
        labels = spread_labels([scale(value) for value in ticks.values], ticks.texts, width)
        if labels is not None and len(set(ticks.texts)) == len(ticks.texts):
            return ticks, labels
    return Ticks(values=(), texts=()), []


def thinned_labels(places: Sequence[float], texts: Sequence[str], width: float) -> list[int]:
    """Return the positions of evenly spaced labels that do not overlap, the first among them."""
    for stride in range(1, len(places) + 1):
        if spread_labels(places[::stride], texts[::stride], width) is not None:
            return list(range(0, len(places), stride))
    return []


def left_margin(texts: Sequence[str]) -> float:
    """Return the room that the labels of a vertical axis need."""
    return max(map(text_width, texts), default=0.0) + 10


def upright_axis(plot: Box, scale: Scale, ticks: Ticks, name: str) -> str:
    """Draw the vertical axis: a subtle line and a label at every tick, and its name above it."""
    lines = "".join(f"M{units(plot.left)} {units(scale(value))}H{units(plot.right)}" for value in ticks.values)
    labels = "".join(
        text((plot.left - 6, scale(value) + 4), words, "end")
        for value, words in zip(ticks.values, ticks.texts, strict=True)
    )
    above = text((2, plot.top - 15), shortened(name, plot.right), "name") if name else ""
    return path("grid", lines) + labels + above


def level_axis(plot: Box, places: Sequence[float], labels: Sequence[TickLabel], name: str) -> str:
    """Draw the horizontal axis below a plot, with short lines at the ticks, and its name."""
    marks = "".join(f"M{units(place)} {units(plot.bottom)}v4" for place in places)
    words = "".join(text((label.middle, plot.bottom + 5 + FONT_SIZE), label.words, "middle") for label in labels)
    middle, below = (plot.left + plot.right) / 2, plot.bottom + 6 + FONT_SIZE + ROW
    base = f"M{units(plot.left)} {units(plot.bottom)}H{units(plot.right)}"
    room = 2 * min(middle, plot.right - middle + 8)
    return path("axis", base + marks) + words + (text((middle, below), shortened(name, room), "middle name"))


BELOW = 6 + FONT_SIZE + ROW + 5
"""Height of the ticks, labels and name below a plot."""
ABOVE = ROW + 12
"""Height of the name of the vertical axis above a plot."""
