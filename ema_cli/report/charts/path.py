"""The path of a run in a plane: its checkpoints in order, and the averages. Both axes have the same scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ema_cli.report.charts.axes import BELOW
from ema_cli.report.charts.canvas import Box, Point, finite, path, polyline, sheet, square, text, units
from ema_cli.report.charts.label_places import PlacedLabel, Wish, placed_labels
from ema_cli.report.charts.lettering import distinct_parts, shortened
from ema_cli.report.charts.marks import MOST_CURVES, color, legend, mark
from ema_cli.report.charts.plane import PLANE_WIDTH, plane_of
from ema_cli.text import plural

_AGES = 6
"""Shades of the path, from its first part to its last."""
_MOST_DOTS, _MOST_TIPS, _MOST_ARROWS, _MOST_NAMES = 400, 60, 12, 10
_LEAST_ARROW = 20.0
"""Shorter segments have no arrow."""
_LONGEST_NAME = 150.0
Spot = tuple[float | None, float | None]


def path_chart(
    points: Sequence[Spot],
    names: Sequence[str],
    averages: Sequence[tuple[str, Spot]],
    axis_labels: tuple[str, str],
) -> str:
    """Draw the checkpoints in a plane, connected in order, and the averages.

    Args:
        points: the places of the checkpoints; one without numbers is not drawn.
        names: the names of the checkpoints.
        averages: name and place of each average.
        axis_labels: the names of both axes.

    """
    parts = distinct_parts(names)
    run = [(spot, name, part) for point, name, part in zip(points, names, parts, strict=True) if (spot := _spot(point))]
    stride = max(1, -(-len(run) // _MOST_DOTS))
    run = [*run[:-1:stride], run[-1]] if run else []
    means = [(name, spot) for name, point in averages[:MOST_CURVES] if (spot := _spot(point))]
    entries, above = legend([name for name, _ in means], 2, PLANE_WIDTH - 4, lines=False)
    plane = plane_of([spot for spot, *_ in run] + [spot for _, spot in means], above, axis_labels)
    places = [plane.place(spot) for spot, *_ in run]
    centers = [plane.place(spot) for _, spot in means]
    wishes = _wishes(places, [part or "-" for *_, part in run], centers, [name or "-" for name, _ in means])
    obstacles = [_around(place, 4) for place in places] + [_around(place, 7) for place in centers]
    labels = placed_labels(wishes, plane.plot, obstacles, list(pairwise(places)))
    inside = entries + plane.markup + _run(places, [name for _, name, _ in run])
    inside += "".join(map(_label, labels))
    for position, (place, (name, _)) in enumerate(zip(centers, means, strict=True)):
        kind = "only" if len(means) == 1 else color(position)
        inside += path(f"average {kind}", mark(_diamond_first(position, len(means)), place), name)
    sentence = f"Path of {plural(len(points), 'checkpoint')} in a plane, and {plural(len(averages), 'average')} in it."
    return square("path", sheet("square", PLANE_WIDTH, plane.plot.bottom + BELOW, inside, sentence))


def _spot(point: Spot) -> Point | None:
    x, y = map(finite, point)
    return None if x is None or y is None else (x, y)


def _around(place: Point, radius: float) -> Box:
    x, y = place
    return Box(left=x - radius, right=x + radius, top=y - radius, bottom=y + radius)


def _wishes(
    places: Sequence[Point], parts: Sequence[str], centers: Sequence[Point], names: Sequence[str]
) -> list[Wish]:
    """Return the labels, the most important first: an average, both ends, and some checkpoints if there is room."""
    wishes = []
    if len(centers) == 1:
        wishes.append(Wish(point=centers[0], words=shortened(names[0], _LONGEST_NAME), kind="strong"))
    ends = {0: "first: ", len(places) - 1: "last: "} if len(places) > 1 else dict.fromkeys(range(len(places)), "")
    wishes += [
        Wish(point=places[k], words=f"{word}{shortened(parts[k], 90)}", kind="end-of-path") for k, word in ends.items()
    ]
    stride = max(1, -(-len(places) // _MOST_NAMES))
    between = range(stride, len(places) - 1, stride)
    return [*wishes, *(Wish(point=places[k], words=shortened(parts[k], 60), is_needed=False) for k in between)]


def _run(places: Sequence[Point], names: Sequence[str]) -> str:
    """Draw the path, lighter at its beginning, with arrows, and a dot for every checkpoint."""
    shapes = [""] * _AGES
    for age in range(_AGES):
        begin, end = (len(places) - 1) * age // _AGES, (len(places) - 1) * (age + 1) // _AGES
        if end > begin:
            shapes[age] = polyline(places[begin : end + 1])
    drawn = "".join(path(f"way age{age}", shape) for age, shape in enumerate(shapes))
    arrows = [(a, b) for a, b in pairwise(places) if math.dist(a, b) >= _LEAST_ARROW]
    stride = max(1, -(-len(arrows) // _MOST_ARROWS))
    drawn += path("arrow", "".join(_arrow(a, b) for a, b in arrows[::stride]))
    return drawn + _spots(places, names)


def _spots(places: Sequence[Point], names: Sequence[str]) -> str:
    """Draw a dot for every checkpoint: with a text under the mouse, or small and together if they are many."""
    if len(places) <= _MOST_TIPS:
        ages = [_AGES * k // len(places) for k in range(len(places))]
        spots = zip(places, names, ages, strict=True)
        return "".join(path(f"spot age{age}", mark(0, place), name) for place, name, age in spots)
    parts = [places[len(places) * age // _AGES : len(places) * (age + 1) // _AGES] for age in range(_AGES)]
    dots = ["".join(f"M{units(x - 1.5)} {units(y - 1.5)}h3v3h-3z" for x, y in part) for part in parts]
    return "".join(path(f"spot age{age}", shape) for age, shape in enumerate(dots))


def _arrow(start: Point, end: Point) -> str:
    """Return a small arrowhead in the middle of a segment, which points to its end."""
    length = math.dist(start, end)
    ahead = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    tip = x + 4 * ahead[0], y + 4 * ahead[1]
    sides = [(x - 4 * ahead[0] + s * 3.5 * ahead[1], y - 4 * ahead[1] - s * 3.5 * ahead[0]) for s in (1, -1)]
    return f"{polyline([tip, *sides])}z"


def _label(label: PlacedLabel) -> str:
    box, (x, y) = label.box, label.wish.point
    line = ""
    if label.is_far:
        near = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        line = path("leader", polyline([(x, y), near]))
    return line + text(
        ((box.left + box.right) / 2, box.bottom - 2), label.wish.words, f"middle {label.wish.kind}".strip()
    )


def _diamond_first(position: int, count: int) -> int:
    """Return the mark of an average: a diamond for a single one."""
    return 3 if count == 1 else position
