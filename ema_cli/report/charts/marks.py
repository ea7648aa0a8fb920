"""How a curve is known, and the legend: by color, dash and mark, so in print and without color vision, too."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.report.charts.canvas import Point, path, text, units
from ema_cli.report.charts.lettering import ROW, shortened, text_width

MOST_CURVES = 12
"""Curves in one plot; the legend states how many more there are."""
_COLORS, _DASHES = 8, 5
_SAMPLE = 26
_LONGEST_NAME = 240.0
_MARKS = (
    (-3.5, 0, "a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"),  # circle
    (-3, -3, "h6v6h-6z"),  # square
    (0, -4.2, "l4 7h-8z"),  # triangle
    (0, -4.5, "l4.5 4.5l-4.5 4.5l-4.5-4.5z"),  # diamond
    (0, 4.2, "l4-7h-8z"),  # triangle, upside down
    (-1.3, -4.2, "h2.6v2.9h2.9v2.6h-2.9v2.9h-2.6v-2.9h-2.9v-2.6h2.9z"),  # cross
)


def color(position: int) -> str:
    """Return the class of the color of a curve."""
    return f"series{position % _COLORS}"


def style(position: int) -> str:
    """Return the classes of a curve: its color and its dash."""
    return f"{color(position)} dash{position % _DASHES}"


def mark(position: int, place: Point) -> str:
    """Return the shape of the mark of a curve at a place."""
    x, y, shape = _MARKS[position % len(_MARKS)]
    return f"M{units(place[0] + x)} {units(place[1] + y)}{shape}"


def legend(names: Sequence[str], left: float, width: float, *, lines: bool = True) -> tuple[str, float]:
    """Return the legend of curves, in rows, and its height; nothing for a single curve."""
    if len(names) < 2:  # noqa: PLR2004 - one curve needs no legend
        return "", 0.0
    shown = [shortened(name, min(_LONGEST_NAME, width - _SAMPLE - 8)) for name in names[:MOST_CURVES]]
    shown += [f"and {len(names) - MOST_CURVES} more"] if len(names) > MOST_CURVES else []
    column = max(map(text_width, shown)) + _SAMPLE + 24
    columns = max(1, int((width + 16) // column))
    entries = []
    for position, name in enumerate(shown):
        x, y = left + position % columns * column, ROW * (position // columns + 0.5) + 3
        if position < MOST_CURVES:
            sample = path(f"line {style(position)}", f"M{units(x)} {units(y)}h{_SAMPLE}") if lines else ""
            entries.append(sample + path(f"dot {color(position)}", mark(position, (x + _SAMPLE / 2, y))))
        entries.append(text((x + _SAMPLE + 6, y + 4), name))
    return "".join(entries), ROW * (1 + (len(shown) - 1) // columns) + 8.0
