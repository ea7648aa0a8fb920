"""Curves of several averages over the checkpoints in one plot: frame, lines, and texts under the mouse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from ema_cli.record import record
from ema_cli.report.charts.axes import (
    ABOVE,
    BELOW,
    Scale,
    TickLabel,
    fitting_ticks,
    left_margin,
    level_axis,
    spread_labels,
    upright_axis,
)
from ema_cli.report.charts.canvas import Box, Point, Size, area, finite, path, polyline, units
from ema_cli.report.charts.marks import MOST_CURVES, color, legend, mark, style
from ema_cli.report.charts.ticks import outer_ticks
from ema_cli.text import number, percent, plural

_MOST_VERTICES = 1000
_ALL_VERTICES = 3000
"""Corners of one curve, and of all in a plot."""
_MOST_MARKS, _ALL_MARKS = 60, 240
"""Points of one curve, and of all, that each have a mark; of more, every curve has some, to be known by."""
_SOME_MARKS = 9
_MOST_RUNS = 50
_MOST_TIPS, _MOST_COLUMNS = 400, 120
"""Numbers, and texts under the mouse; with more, fewer checkpoints have one."""
_UNSEEN, _LEAST_CUT, _LEAST_SHOWN = 0.001, 0.6, 30
"""The first checkpoints are not drawn if they make up that part of an average, and are that part of all checkpoints;
at least so many are drawn."""
_UP_TICKS = 5
_MOST_OWN_TICKS, _LONGEST_OWN_TICK = 20, 1e6
"""Checkpoints that each have a tick, if their numbers are below the second one."""


@record
class Curve:
    """A number per checkpoint, of one average."""

    name: str
    """The name of the average, safe for display."""
    values: Sequence[float | None]
    """As many as there are checkpoints; ``None`` where there is none."""

    def times(self, factor: float) -> Curve:
        """Return the curve in another unit, with numbers that can all be drawn."""
        scaled = (None if value is None else finite(factor * value) for value in map(finite, self.values))
        return Curve(name=self.name, values=list(scaled))

    def since(self, begin: int) -> Curve:
        """Return the curve without the first checkpoints."""
        return Curve(name=self.name, values=self.values[begin:])


@record
class Frame:
    """Where curves are drawn, and everything around them."""

    size: Size
    height: float
    plot: Box
    across: Scale
    up: Scale
    markup: str
    """Legend, axes and labels."""


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
    ys = [0.0, least, *(y for curve in curves[:MOST_CURVES] for y in curve.values if y is not None)]
    upright = outer_ticks(min(ys), max(ys) if any(ys) else 1.0, _UP_TICKS, unit=unit)
    left = left_margin(upright.texts)
    entries, above = legend([curve.name for curve in curves], 2, size.width - 4)
    plot = Box(left=left, right=size.width - 12, top=above + ABOVE, bottom=above + ABOVE + size.plot_height)
    found = [x for x in xs if x is not None] or [0.0]
    across = Scale(low=min(found), high=max(found), start=left + 14, stop=plot.right - 8)
    up = Scale(low=upright.values[0], high=upright.values[-1], start=plot.bottom, stop=plot.top)
    places, labels = _level_ticks(across, size.width, found)
    markup = upright_axis(plot, up, upright, names[1]) + level_axis(plot, places, labels, names[0])
    zero = path("zero", f"M{units(plot.left)} {units(up(0))}H{units(plot.right)}") if up.low < 0 else ""
    return Frame(size=size, height=plot.bottom + BELOW, plot=plot, across=across, up=up, markup=entries + markup + zero)


def first_drawn(parts: Sequence[Sequence[float]]) -> tuple[int, str]:
    """Return the first checkpoint that is drawn, and what to add to the name of the axis if it is not the first one.

    Most of a long run has hardly a share in an average of its end, which would be too small to see.

    Args:
        parts: of each average and checkpoint, the part of the average that the checkpoints up to this one make up.

    """
    count = min(map(len, parts), default=0)
    begins = (next((i for i, part in enumerate(row) if part >= _UNSEEN), 0) for row in parts)
    begin = min(min(begins, default=0) - 1, count - _LEAST_SHOWN)
    if begin < count * _LEAST_CUT or not count:
        return 0, ""
    return begin, f" ({begin:,} earlier checkpoints: < {100 * _UNSEEN:g} %)"


def _level_ticks(across: Scale, width: float, xs: Sequence[float]) -> tuple[list[float], list[TickLabel]]:
    """Return the places and labels of ticks: at the checkpoints if they are few, otherwise at round numbers."""
    distinct = sorted(set(xs))
    is_whole = all(x == round(x) for x in distinct)
    if is_whole and len(distinct) <= _MOST_OWN_TICKS and distinct[-1] < _LONGEST_OWN_TICK:
        places = list(map(across, distinct))
        labels = spread_labels(places, [number_of(x) for x in distinct], width)
        if labels is not None:
            return places, labels
    ticks, labels = fitting_ticks(across, width, whole=is_whole)
    return [across(value) for value in ticks.values], labels


def placed(frame: Frame, xs: Sequence[float | None], values: Sequence[float | None]) -> list[list[Point]]:
    """Return the places of a curve, in runs without a gap; with very many gaps, they are not shown."""
    runs: list[list[Point]] = [[]]
    for x, y in zip(xs, values, strict=True):
        if x is not None and y is not None:
            runs[-1].append((frame.across(x), frame.up(y)))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    return runs if len(runs) <= _MOST_RUNS else [[point for run in runs for point in run]]


def thinned(points: Sequence[Point], most: int = _MOST_VERTICES) -> list[Point]:
    """Return at most ``most`` points: of each of many short parts its first, lowest, highest and last point."""
    if len(points) <= most:
        return list(points)
    length = -(-len(points) // max(1, most // 4))
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
    most = min(_MOST_VERTICES, _ALL_VERTICES // max(1, len(curves))) // (2 if steps else 1)
    for position, curve in enumerate(curves[:MOST_CURVES]):
        runs = placed(frame, xs, curve.values)
        corners = _stairs if steps and len(curve.values) <= most else partial(thinned, most=most)
        shape = "".join(polyline(corners(run)) for run in runs)
        drawn.append(path(f"line {style(position)}", shape))
        points = [point for run in runs for point in run]
        marks = "".join(mark(position, point) for point in _marked(points, position, len(curves)))
        drawn.append(path(f"dot {color(position)}", marks))
    return "".join(drawn)


def _stairs(points: Sequence[Point]) -> list[Point]:
    """Return the corners of a curve whose value at a point holds since the point before."""
    corners = [points[0]]
    for (x, _), (next_x, y) in pairwise(points):
        corners += [(x, y), (next_x, y)]
    return corners


def _marked(points: Sequence[Point], position: int, count: int) -> Sequence[Point]:
    """Return the points of a curve that get a mark: all if they are few, otherwise some, others for each curve."""
    if len(points) <= min(_MOST_MARKS, _ALL_MARKS // count):
        return points
    if count == 1:
        return ()
    stride = len(points) / _SOME_MARKS
    return [*(points[int((k + (position + 0.5) / count) * stride)] for k in range(_SOME_MARKS)), points[-1]]


def tips(
    frame: Frame, xs: Sequence[float | None], curves: Sequence[Curve], unit: str, show: Callable[[float], str]
) -> str:
    """Draw a column without color for each of at most some checkpoints: under the mouse it states their numbers."""
    if not frame.size.has_tips:
        return ""
    shown = curves[:MOST_CURVES]
    places = [(frame.across(x), i) for i, x in enumerate(xs) if x is not None]
    stride = max(1, -(-len(places) * len(shown) // _MOST_TIPS), -(-len(places) // _MOST_COLUMNS))
    places = sorted(places[::stride])
    edges = [(a + b) / 2 for (a, _), (b, _) in pairwise(places)]
    columns = zip([frame.plot.left, *edges], [*edges, frame.plot.right], places, strict=False)
    return "".join(
        area(
            "tip",
            Box(left=left, right=right, top=frame.plot.top, bottom=frame.plot.bottom),
            _tip(f"{unit} {number_of(xs[i] or 0)}", shown, i, show),
        )
        for left, right, (_, i) in columns
        if right > left
    )


def _tip(title: str, curves: Sequence[Curve], position: int, show: Callable[[float], str]) -> str:
    values = (curve.values[position] for curve in curves)
    texts = ["-" if value is None else show(value) for value in values]
    if len(curves) == 1:
        return f"{title}: {texts[0]}"
    return "\n".join([title, *(f"{curve.name}: {words}" for curve, words in zip(curves, texts, strict=True))])


def number_of(value: float) -> str:
    """Return a number in words of a chart: whole ones with all digits."""
    return number(int(value)) if value == round(value) and abs(value) < 1e15 else number(value)  # noqa: PLR2004


def percent_of(value: float) -> str:
    """Return a number of percent as text, as in the tables."""
    return percent(value / 100)


def in_words(xs: Sequence[float | None], curves: Sequence[Curve], unit: str, show: Callable[[float], str]) -> str:
    """Return what curves show as a sentence: how many checkpoints, and of each curve first, last and largest."""
    found = [x for x in xs if x is not None]
    where = f", {unit} {number_of(found[0])} to {number_of(found[-1])}" if len(found) > 1 else ""
    few = [_summary(curve, show) for curve in curves[:3]]
    more = f"; and {len(curves) - len(few)} more" if len(curves) > len(few) else ""
    return f"{plural(len(xs), 'checkpoint')}{where}. {'; '.join(few)}{more}."


def _summary(curve: Curve, show: Callable[[float], str]) -> str:
    values = [value for value in curve.values if value is not None]
    if not values:
        return f"{curve.name}: no values"
    return f"{curve.name}: first {show(values[0])}, last {show(values[-1])}, largest {show(max(values))}"
