"""Curves of several averages over the checkpoints in one plot: their styles, legend, marks and texts under the mouse.

A curve is known by color, dash and mark, so that it is known in print and without color vision, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ema_cli.report.charts.axes import (
    ABOVE,
    BELOW,
    Scale,
    fitting_ticks,
    left_margin,
    level_axis,
    upright_axis,
)
from ema_cli.report.charts.canvas import Box, Point, Size, area, finite, known, path, polyline, text, units
from ema_cli.report.charts.lettering import ROW, shortened, text_width
from ema_cli.report.charts.ticks import outer_ticks
from ema_cli.text import number

MOST_CURVES = 12
"""Curves in one plot; the legend states how many more there are."""
_COLORS, _DASHES = 8, 5
_MOST_VERTICES = 1000
_ALL_VERTICES = 3000
"""Corners of one curve, and of all in a plot."""
_MOST_MARKS = 40
"""Points that all have a mark; of more, every curve has some marks, so that it is known by them."""
_SOME_MARKS = 9
_MOST_TIPS, _MOST_COLUMNS = 400, 120
"""Numbers, and texts under the mouse; with more, fewer checkpoints have one."""
_SAMPLE = 26
_LONGEST_NAME = 240.0
_UP_TICKS = 5
_MARKS = (
    (-3.5, 0, "a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"),  # circle
    (-3, -3, "h6v6h-6z"),  # square
    (0, -4.2, "l4 7h-8z"),  # triangle
    (0, -4.5, "l4.5 4.5l-4.5 4.5l-4.5-4.5z"),  # diamond
    (0, 4.2, "l4-7h-8z"),  # triangle, upside down
    (-1.3, -4.2, "h2.6v2.9h2.9v2.6h-2.9v2.9h-2.6v-2.9h-2.9v-2.6h2.9z"),  # cross
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A number per checkpoint, of one average."""

    name: str
    """The name of the average, safe for display."""
    values: Sequence[float | None]
    """As many as there are checkpoints; ``None`` where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where curves are drawn, and everything around them."""

    size: Size
    height: float
    plot: Box
    across: Scale
    up: Scale
    markup: str
    """Legend, axes and labels."""


def style(position: int) -> str:
    """Return the classes of a curve: its color and its dash."""
    return f"series{position % _COLORS} dash{position % _DASHES}"


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
            entries.append(sample + path(f"dot series{position % _COLORS}", mark(position, (x + _SAMPLE / 2, y))))
        entries.append(text((x + _SAMPLE + 6, y + 4), name))
    return "".join(entries), ROW * (1 + (len(shown) - 1) // columns) + 8.0


def framed(
    size: Size, xs: Sequence[float | None], curves: Sequence[Curve], *, names: tuple[str, str], unit: str, least: float
) -> Frame:
    """Return the frame of curves.

    Args:
        size: the size of the chart.
        xs: the checkpoints, one number each.
        curves: the values, in the unit of the vertical axis.
        names: the names of the axes, horizontal first.
        unit: what follows every number of the vertical axis.
        least: the vertical axis reaches from zero to at least this number.

    """
    ys = [0.0, least, *(y for curve in curves[:MOST_CURVES] for y in known(curve.values))]
    upright = outer_ticks(min(ys), max(ys), _UP_TICKS, unit=unit)
    left = left_margin(upright.texts)
    entries, above = legend([curve.name for curve in curves], 2, size.width - 4)
    plot = Box(left=left, right=size.width - 12, top=above + ABOVE, bottom=above + ABOVE + size.plot_height)
    found = known(xs) or [0.0]
    across = Scale(low=min(found), high=max(found), start=left + 14, stop=plot.right - 8)
    up = Scale(low=upright.values[0], high=upright.values[-1], start=plot.bottom, stop=plot.top)
    ticks, labels = fitting_ticks(across, size.width, whole=all(x == round(x) for x in found))
    markup = upright_axis(plot, up, upright, names[1])
    markup += level_axis(plot, [across(value) for value in ticks.values], labels, names[0])
    zero = path("zero", f"M{units(plot.left)} {units(up(0))}H{units(plot.right)}") if up.low < 0 else ""
    return Frame(size=size, height=plot.bottom + BELOW, plot=plot, across=across, up=up, markup=entries + markup + zero)


def placed(frame: Frame, xs: Sequence[float | None], values: Sequence[float | None]) -> list[list[Point]]:
    """Return the places of a curve, in runs without a gap."""
    runs: list[list[Point]] = [[]]
    for x, y in zip(map(finite, xs), map(finite, values), strict=True):
        if x is not None and y is not None:
            runs[-1].append((frame.across(x), frame.up(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def thinned(points: Sequence[Point], most: int = _MOST_VERTICES) -> list[Point]:
    """Return at most ``most`` points: of each of many short parts its first, lowest, highest and last point."""
    if len(points) <= most:
        return list(points)
    length = -(-4 * len(points) // most)
    kept: list[Point] = []
    for start in range(0, len(points), length):
        part = points[start : start + length]
        heights = [y for _, y in part]
        picked = {0, heights.index(min(heights)), heights.index(max(heights)), len(part) - 1}
        kept += [part[position] for position in sorted(picked)]
    return kept


def lines(frame: Frame, xs: Sequence[float | None], curves: Sequence[Curve], *, steps: bool = False) -> str:
    """Draw curves with their marks, straight from point to point or, with ``steps``, level up to each point."""
    drawn = []
    most = min(_MOST_VERTICES, _ALL_VERTICES // len(curves)) // (2 if steps else 1)
    for position, curve in enumerate(curves[:MOST_CURVES]):
        runs = placed(frame, xs, curve.values)
        shape = "".join(polyline(_stairs(run) if steps else run) for run in (thinned(run, most) for run in runs))
        drawn.append(path(f"line {style(position)}", shape))
        points = [point for run in runs for point in run]
        marks = "".join(mark(position, point) for point in _marked(points, position, len(curves)))
        drawn.append(path(f"dot series{position % _COLORS}", marks))
    return "".join(drawn)


def _stairs(points: Sequence[Point]) -> list[Point]:
    """Return the corners of a curve whose value at a point holds since the point before."""
    corners = [points[0]]
    for (x, _), (next_x, y) in pairwise(points):
        corners += [(x, y), (next_x, y)]
    return corners


def _marked(points: Sequence[Point], position: int, count: int) -> Sequence[Point]:
    """Return the points of a curve that get a mark: all if they are few, otherwise some, others for each curve."""
    if len(points) <= _MOST_MARKS:
        return points
    if count == 1:
        return ()
    stride = len(points) / _SOME_MARKS
    return [points[int((k + (position + 0.5) / count) * stride)] for k in range(_SOME_MARKS)]


def tips(
    frame: Frame, xs: Sequence[float | None], curves: Sequence[Curve], unit: str, show: Callable[[float], str]
) -> str:
    """Draw a column without color for each of at most some checkpoints: under the mouse it states their numbers."""
    if not frame.size.has_tips:
        return ""
    shown = curves[:MOST_CURVES]
    places = [(frame.across(x), i) for i, x in enumerate(map(finite, xs)) if x is not None]
    stride = max(1, -(-len(places) * len(shown) // _MOST_TIPS), -(-len(places) // _MOST_COLUMNS))
    places = sorted(places[::stride])
    edges = [(a + b) / 2 for (a, _), (b, _) in pairwise(places)]
    columns = zip([frame.plot.left, *edges], [*edges, frame.plot.right], places, strict=False)
    return "".join(
        area(
            "tip",
            Box(left=left, right=right, top=frame.plot.top, bottom=frame.plot.bottom),
            _tip(f"{unit} {number_of(finite(xs[i]) or 0)}", shown, i, show),
        )
        for left, right, (_, i) in columns
        if right > left
    )


def _tip(title: str, curves: Sequence[Curve], position: int, show: Callable[[float], str]) -> str:
    values = [finite(curve.values[position]) for curve in curves]
    texts = ["-" if value is None else show(value) for value in values]
    if len(curves) == 1:
        return f"{title}: {texts[0]}"
    return "\n".join([title, *(f"{curve.name}: {words}" for curve, words in zip(curves, texts, strict=True))])


def number_of(value: float) -> str:
    """Return a number in words of a chart: whole ones with all digits."""
    return number(int(value)) if value == round(value) and abs(value) < 1e15 else number(value)  # noqa: PLR2004


def percent_of(value: float) -> str:
    """Return a number of percent as text, of any size."""
    return f"{value:.1f} %" if 0.05 <= abs(value) < 1e4 or not value else f"{number(value)} %"  # noqa: PLR2004


def in_words(xs: Sequence[float | None], curves: Sequence[Curve], unit: str, show: Callable[[float], str]) -> str:
    """Return what curves show as a sentence: how many checkpoints, and of each curve first, last and largest."""
    found = known(xs)
    where = f", {unit} {number_of(found[0])} to {number_of(found[-1])}" if len(found) > 1 else ""
    few = [_summary(curve, show) for curve in curves[:3]]
    more = f"; and {len(curves) - len(few)} more" if len(curves) > len(few) else ""
    return f"{number(len(xs))} checkpoint{'s' if len(xs) != 1 else ''}{where}. {'; '.join(few)}{more}."


def _summary(curve: Curve, show: Callable[[float], str]) -> str:
    values = known(curve.values)
    if not values:
        return f"{curve.name}: no values"
    return f"{curve.name}: first {show(values[0])}, last {show(values[-1])}, largest {show(max(values))}"
