"""The plane that the path of a run is drawn in: both axes have the same scale, and the points are in the middle."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.record import record
from ema_cli.report.charts.axes import ABOVE, Scale, fitting_ticks, left_margin, level_axis, upright_axis
from ema_cli.report.charts.canvas import Box, Point, path, units
from ema_cli.report.charts.ticks import Ticks, inner_ticks

PLANE_WIDTH = 380.0
"""Width of the whole chart."""
_RIGHT = 10.0
_LOWEST, _HIGHEST = 150.0, 300.0
"""Least and largest height of the plot: a path that is long and flat gets a flat plot."""
_AROUND = 34.0
"""Room around the path, for labels."""
_TICK_ROOM = 45


@record
class Plane:
    """Where points of a plane are drawn."""

    plot: Box
    across: Scale
    up: Scale
    markup: str
    """Axes and labels."""

    def place(self, point: Point) -> Point:
        """Return where a point is drawn."""
        return self.across(point[0]), self.up(point[1])


@record
class _Upright:
    """The vertical axis."""

    low: float
    high: float
    height: float
    ticks: Ticks
    per_unit: float
    """Length in the plane per unit of the chart."""


def plane_of(points: Sequence[Point], above: float, names: tuple[str, str]) -> Plane:
    """Return the plane for some points, below a legend of some height, with the names of its axes."""
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    upright = _upright(xs, ys, left_margin(_upright(xs, ys, 0).ticks.texts) + 8)
    top = above + ABOVE
    plot = Box(left=left_margin(upright.ticks.texts), right=PLANE_WIDTH - _RIGHT, top=top, bottom=top + upright.height)
    up = Scale(low=upright.low, high=upright.high, start=plot.bottom, stop=plot.top)
    low, high = _around_middle(xs, plot.width * upright.per_unit)
    across = Scale(low=low, high=high, start=plot.left, stop=plot.right)
    ticks, labels = fitting_ticks(across, PLANE_WIDTH)
    places = [across(value) for value in ticks.values]
    lines = path("grid", "".join(f"M{units(place)} {units(plot.top)}V{units(plot.bottom)}" for place in places))
    axes = upright_axis(plot, up, upright.ticks, names[1]) + level_axis(plot, places, labels, names[0])
    return Plane(plot=plot, across=across, up=up, markup=lines + axes)


def _upright(xs: Sequence[float], ys: Sequence[float], left: float) -> _Upright:
    """Return the vertical axis, if its labels need that much room to the left."""
    room = PLANE_WIDTH - _RIGHT - left - 2 * _AROUND
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    around = max(abs(xs[0]), abs(ys[0])) or 1.0
    per_unit = max(wide / room, high / (_HIGHEST - 2 * _AROUND)) or around / room
    height = min(max(high / per_unit + 2 * _AROUND, _LOWEST), _HIGHEST)
    low, high = _around_middle(ys, height * per_unit)
    ticks = inner_ticks(low, high, max(2, int(height / _TICK_ROOM)))
    return _Upright(low=low, high=high, height=height, ticks=ticks, per_unit=per_unit)


def _around_middle(values: Sequence[float], span: float) -> tuple[float, float]:
    middle = min(values) / 2 + max(values) / 2
    return middle - span / 2, middle + span / 2
