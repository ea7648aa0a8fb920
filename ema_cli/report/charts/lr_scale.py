"""The learning-rate scale of an average over the steps: a step function."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.report.charts.canvas import Size, sheet, wide_and_narrow
from ema_cli.report.charts.curves import Curve, framed, in_words, lines, tips
from ema_cli.text import number


def lr_chart(xs: Sequence[float | None], series: Sequence[Curve], *, x_label: str) -> str:
    """Draw the factor by which each average scales the update before each checkpoint.

    Args:
        xs: the step of each checkpoint, in fold order.
        series: the averages; a value belongs to the steps since the checkpoint before.
        x_label: the unit of the steps.

    """
    sentence = f"Learning-rate scale: {in_words(xs, series, x_label, number)}"

    def draw(size: Size) -> str:
        frame = framed(size, xs, series, names=(x_label, "learning-rate scale"), unit="", least=1.0)
        inside = frame.markup + lines(frame, xs, series, steps=True) + tips(frame, xs, series, x_label, number)
        return sheet(size.name, size.width, frame.height, inside, sentence)

    return wide_and_narrow("lr", draw)
