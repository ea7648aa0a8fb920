"""Where the labels of points go, so that they lie neither on points nor on each other.

Each label tries places around its point, nearest first, and takes the first that is free; a label that must be shown
takes the least bad place, and one that need not be is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ema_cli.record import record
from ema_cli.report.charts.canvas import Box, Point
from ema_cli.report.charts.lettering import FONT_SIZE, text_width

_NEAR, _FAR = (10.0, 16.0), (26.0, 42.0)
"""Distances of a label from its point; only a needed label is far, with a line to its point."""
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_SAMPLES = 12
_ON_A_POINT, _ON_A_LINE = 100.0, 3.0
"""Costs of a label on a point or label, and on a line of the path."""


@record
class Wish:
    """A label that wants a place."""

    point: Point
    words: str
    kind: str = ""
    """Its class in the style sheet."""
    is_needed: bool = True
    """Whether it is shown even where there is no free place."""


@record
class PlacedLabel:
    """A label at its place."""

    wish: Wish
    box: Box
    is_far: bool
    """Whether a line to its point is needed."""


def placed_labels(
    wishes: Sequence[Wish], inside: Box, obstacles: Sequence[Box], lines: Sequence[tuple[Point, Point]]
) -> list[PlacedLabel]:
    """Return the labels that are shown, first wishes first.

    Args:
        wishes: the labels, the most important first.
        inside: the part of the chart that labels may cover.
        obstacles: the marks, which labels should not cover.
        lines: the segments of the path, which labels should avoid.

    """
    taken = list(obstacles)
    crossings = [point for segment in lines for point in _along(segment)]
    shown = []
    for wish in wishes:
        cost, found = min(
            (
                (_cost(box, taken, crossings) + 0.01 * order, label)
                for order, (box, label) in enumerate(_tries(wish, inside))
            ),
            key=lambda pair: pair[0],
            default=(_ON_A_POINT, None),
        )
        if found is None or (cost >= _ON_A_LINE and not wish.is_needed):
            continue
        taken.append(found.box)
        shown.append(found)
    return shown


def _tries(wish: Wish, inside: Box) -> Iterator[tuple[Box, PlacedLabel]]:
    """Yield the places around a point that are inside the chart."""
    width, height = text_width(wish.words), FONT_SIZE
    for distance in _NEAR + _FAR if wish.is_needed else _NEAR:
        for across, down in _DIRECTIONS:
            x = wish.point[0] + across * (distance + width / 2)
            y = wish.point[1] + down * (distance + height / 2)
            box = Box(left=x - width / 2, right=x + width / 2, top=y - height / 2, bottom=y + height / 2)
            if inside.contains(box):
                yield box, PlacedLabel(wish=wish, box=box, is_far=distance in _FAR)


def _cost(box: Box, taken: Sequence[Box], crossings: Sequence[Point]) -> float:
    on_points = sum(box.touches(other) for other in taken)
    on_lines = sum(box.left < x < box.right and box.top < y < box.bottom for x, y in crossings)
    return _ON_A_POINT * on_points + _ON_A_LINE * on_lines


def _along(segment: tuple[Point, Point]) -> Iterator[Point]:
    (x, y), (to_x, to_y) = segment
    for k in range(1, _SAMPLES):
        yield x + (to_x - x) * k / _SAMPLES, y + (to_y - y) * k / _SAMPLES
