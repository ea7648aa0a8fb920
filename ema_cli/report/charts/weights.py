"""The first chart of the page: the share of every checkpoint, over its step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from ema_cli.report.charts.canvas import Size, finite, path, polyline, sheet, units, wide_and_narrow
from ema_cli.report.charts.curves import (
    Curve,
    Frame,
    first_drawn,
    framed,
    in_words,
    lines,
    percent_of,
    placed,
    thinned,
    tips,
)
from ema_cli.report.charts.marks import mark, style

_MOST_BARS = 60
_BROADEST_BAR = 26.0
_LEAST_GAP = 4.0
"""Bars need that much room each; points that are nearer get stems."""


def weights_chart(xs: Sequence[float | None], series: Sequence[Curve], *, x_label: str) -> str:
    """Draw the shares of the checkpoints in each of several averages, as percent.

    Args:
        xs: the step of each checkpoint, in fold order.
        series: the averages; their values are shares, in sum 1, and may be negative.
        x_label: the unit of the steps.

    """
    xs, curves = [*map(finite, xs)], [curve.times(100) for curve in series]
    begin, earlier = first_drawn([_sums(curve.values) for curve in curves])
    sentence = f"Share of each checkpoint in the average: {in_words(xs, curves, x_label, percent_of)}"
    xs, curves = xs[begin:], [curve.since(begin) for curve in curves]

    def draw(size: Size) -> str:
        frame = framed(size, xs, curves, names=(f"{x_label}{earlier}", "share of the average"), unit=" %", least=0.0)
        marks = _single(frame, xs, curves[0]) if len(curves) == 1 else lines(frame, xs, curves)
        inside = frame.markup + marks + tips(frame, xs, curves, x_label, percent_of)
        return sheet(size.name, size.width, frame.height, inside, sentence)

    return wide_and_narrow("weights", draw)


def _sums(shares: Sequence[float | None]) -> list[float]:
    """Return, for each checkpoint, the part of all that it and those before it make up."""
    sums = list(accumulate(abs(share or 0.0) for share in shares))
    return [part / (sums[-1] or 1.0) for part in sums]


def _single(frame: Frame, xs: Sequence[float | None], curve: Curve) -> str:
    """Draw one average: bars, stems where they are too near for bars, or a line above its area if they are many."""
    runs = placed(frame, xs, curve.values)
    points = [point for run in runs for point in run]
    zero = frame.up(0)
    if len(points) > _MOST_BARS:
        runs = [thinned(run) for run in runs]
        below = "".join(f"{polyline([(run[0][0], zero), *run, (run[-1][0], zero)])}z" for run in runs)
        return path("area series0", below) + path(f"line {style(0)}", "".join(map(polyline, runs)))
    gap = min((b - a for a, b in pairwise(sorted({x for x, _ in points}))), default=_BROADEST_BAR)
    if gap >= _LEAST_GAP:
        width = min(_BROADEST_BAR, 0.7 * gap)
        return path("bar series0", "".join(_bar(x, y, zero, width) for x, y in points))
    stems = "".join(f"M{units(x)} {units(zero)}V{units(y)}" for x, y in points)
    return path("stem series0", stems) + path("dot series0", "".join(mark(0, point) for point in points))


def _bar(x: float, y: float, zero: float, width: float) -> str:
    return f"M{units(x - width / 2)} {units(zero)}V{units(y)}h{units(width)}V{units(zero)}z"
