"""The sheet that a chart is drawn on: its sizes, its elements, and numbers as coordinates.

Invariant: text is escaped here and nowhere else, and no coordinate is NaN or infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise

from ema_cli.record import record
from ema_cli.text import printable

Point = tuple[float, float]
LARGEST, SMALLEST = 1e300, 1e-300
"""Magnitudes beyond these are drawn like these, or like zero: then spans and their parts are finite, too."""


@record
class Size:
    """One of the sizes that a chart is drawn in."""

    name: str
    """Its class in the style sheet."""
    width: float
    """Width of the chart."""
    plot_height: float
    """Height of the part that shows the numbers, without legend and labels."""
    has_tips: bool = True
    """Whether marks have texts that are shown under the mouse."""


WIDE = Size(name="wide", width=760, plot_height=230)
NARROW = Size(name="narrow", width=380, plot_height=190, has_tips=False)


@record
class Box:
    """A rectangle; y grows downward."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """The distance from left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """The distance from top to bottom."""
        return self.bottom - self.top

    def touches(self, other: Box) -> bool:
        """Whether this box and another have a point in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        """Whether another box is inside this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def finite(value: float | None) -> float | None:
    """Return a number that can be drawn, or ``None`` for one that is undefined or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return 0.0 if abs(value) < SMALLEST else math.copysign(min(abs(value), LARGEST), value)


def known(values: Iterable[float | None]) -> list[float]:
    """Return the numbers that can be drawn."""
    return [value for value in map(finite, values) if value is not None]


def units(value: float) -> str:
    """Return a coordinate, rounded to a tenth of a unit."""
    return f"{round(value, 1):g}"


def polyline(points: Sequence[Point]) -> str:
    """Return the path through points, without those that are drawn at the same place as the one before."""
    corners = [(round(10 * x), round(10 * y)) for x, y in points]
    moves = [(x - a, y - b) for (a, b), (x, y) in pairwise(corners) if (a, b) != (x, y)]
    if not corners:
        return ""
    start = f"M{corners[0][0] / 10:g} {corners[0][1] / 10:g}"
    return f"{start}l{' '.join(f'{x / 10:g} {y / 10:g}' for x, y in moves)}" if moves else f"{start}h0"


def path(kind: str, shape: str, tip: str = "") -> str:
    """Draw a path of a class, with a text that is shown under the mouse."""
    if not shape:
        return ""
    return f'<path class="{kind}" d="{shape}">{_tip(tip)}</path>' if tip else f'<path class="{kind}" d="{shape}"/>'


def area(kind: str, box: Box, tip: str = "") -> str:
    """Draw a rectangle of a class."""
    place = f'x="{units(box.left)}" y="{units(box.top)}" width="{units(box.width)}" height="{units(box.height)}"'
    return f'<rect class="{kind}" {place}>{_tip(tip)}</rect>'


def text(place: Point, words: str, kind: str = "") -> str:
    """Write a text, whose class is ``label`` and what ``kind`` adds: ``middle``, ``end``, ``strong``."""
    if not words:
        return ""
    classes = f"label {kind}".strip()
    return f'<text class="{classes}" x="{units(place[0])}" y="{units(place[1])}">{_escaped(words)}</text>'


def _escaped(words: str) -> str:
    """Return words for the inside of an element or an attribute; lines stay lines."""
    return escape(printable(words, kept="\n"))


def _tip(words: str) -> str:
    return f"<title>{_escaped(words)}</title>" if words else ""


def sheet(name: str, width: float, height: float, inside: str, sentence: str) -> str:
    """Return a chart: its size and the sentence that states its content."""
    frame = f'class="chart-{name}" viewBox="0 0 {units(width)} {units(height)}"'
    return f'<svg {frame} role="img" aria-label="{_escaped(sentence)}">{inside}</svg>'


def wide_and_narrow(kind: str, draw: Callable[[Size], str]) -> str:
    """Return a chart that is drawn for a wide and for a narrow column; the style sheet shows one of them."""
    return f'<div class="plot {kind}">{draw(WIDE)}{draw(NARROW)}</div>'


def square(kind: str, drawing: str) -> str:
    """Return a chart that is drawn once, in a size for half of a wide page or for a narrow one."""
    return f'<div class="plot square {kind}">{drawing}</div>'
