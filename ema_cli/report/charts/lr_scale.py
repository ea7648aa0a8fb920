"""The learning-rate scale of an average over the steps: a step function."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.report.charts.canvas import Size, finite, sheet, wide_and_narrow
from ema_cli.report.charts.curves import Curve, first_drawn, framed, in_words, lines, tips
from ema_cli.text import number


def lr_chart(xs: Sequence[float | None], series: Sequence[Curve], *, x_label: str) -> str:
    """Draw the factor by which each average scales the update before each checkpoint.

    Args:
        xs: the step of each checkpoint, in fold order.
        series: the averages; a value belongs to the steps since the checkpoint before.
        x_label: the unit of the steps.

    """
    xs, curves = [*map(finite, xs)], [curve.times(1) for curve in series]
    sentence = f"Learning-rate scale: {in_words(xs, curves, x_label, number)}"
    begin, earlier = first_drawn([_falls(curve.values) for curve in curves])
    xs, curves = xs[begin:], [curve.since(begin) for curve in curves]

    def draw(size: Size) -> str:
        frame = framed(size, xs, curves, names=(f"{x_label}{earlier}", "learning-rate scale"), unit="", least=1.0)
        inside = frame.markup + lines(frame, xs, curves, steps=True) + tips(frame, xs, curves, x_label, number)
        return sheet(size.name, size.width, frame.height, inside, sentence)

    return wide_and_narrow("lr", draw)


def _falls(values: Sequence[float | None]) -> list[float]:
    """Return by how much the scale is below its beginning: the share of the checkpoints before."""
    return [abs((values[0] or 0.0) - (value or 0.0)) for value in values]
