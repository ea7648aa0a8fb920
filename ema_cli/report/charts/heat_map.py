"""Distances between all pairs of checkpoints, as squares of some shades."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ema_cli.report.charts.axes import spread_labels, thinned_labels
from ema_cli.report.charts.canvas import finite, known, path, sheet, square, text, units
from ema_cli.report.charts.lettering import FONT_SIZE, ROW, distinct_parts, shortened, text_width
from ema_cli.report.charts.shades import LEGEND_HEIGHT, Shades, shades
from ema_cli.text import number

_WIDTH = 380.0
_LARGEST_SIDE = 60.0
_LEAST_LEGEND = 180.0
_MOST_SQUARES = 64
"""Squares along a side; of more checkpoints, this many are drawn, evenly spaced."""
_MOST_TIPS = 14
"""Squares along a side that each have a text under the mouse."""
_LONGEST_NAME = 72.0
_OVERLAP = 0.5
"""Squares are that much larger than their room, so that no gap is seen between them."""


def heat_map(matrix: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    """Draw a symmetric matrix of numbers, with the names of its rows below and to the left.

    Args:
        matrix: a number for every pair of checkpoints, in fold order; a pair without a number stays empty.
        names: the names of the checkpoints.

    """
    picked = _picked(len(names))
    cells = [[finite(matrix[i][j]) for j in picked] for i in picked]
    parts = [shortened(part, _LONGEST_NAME) for part in distinct_parts(names)]
    parts = [parts[i] for i in picked]
    scale = shades([value for row in cells for value in row])
    left = max(map(text_width, parts), default=0.0) + 8
    side = min((_WIDTH - left - 14) / max(1, len(picked)), _LARGEST_SIDE)
    inside = _squares(cells, scale, left, side, [names[i] for i in picked])
    inside += _names(parts, left, side)
    bottom = 4 + side * len(picked) + FONT_SIZE + ROW
    inside += scale.legend(left, bottom, max(side * len(picked), _LEAST_LEGEND))
    largest = max((value for row in cells for value in known(row)), default=0.0)
    sentence = f"Distances between all pairs of {len(names):,} checkpoints; the largest is {number(largest)}."
    return square("heat-map", sheet("square", _WIDTH, bottom + LEGEND_HEIGHT, inside, sentence))


def _picked(count: int) -> list[int]:
    if count <= _MOST_SQUARES:
        return list(range(count))
    return [round(k * (count - 1) / (_MOST_SQUARES - 1)) for k in range(_MOST_SQUARES)]


def _squares(
    cells: Sequence[Sequence[float | None]], scale: Shades, left: float, side: float, names: Sequence[str]
) -> str:
    """Draw the squares: each alone with a text if they are few, otherwise all of a shade together."""
    height = f'stroke-width="{units(side + _OVERLAP)}"'
    if len(cells) <= _MOST_TIPS:
        drawn = "".join(
            path(f"shade {scale.kind(value)}", _place(left, side, i, j, 1), f"{names[i]}, {names[j]}: {number(value)}")
            for i, row in enumerate(cells)
            for j, value in enumerate(row)
            if value is not None
        )
        return f"<g {height}>{drawn}</g>"
    shapes: dict[str, list[str]] = defaultdict(list)
    for i, row in enumerate(cells):
        for j, count, kind in runs_of([None if value is None else scale.kind(value) for value in row]):
            shapes[kind].append(_place(left, side, i, j, count))
    drawn = "".join(path(f"shade {kind}", "".join(places)) for kind, places in sorted(shapes.items()))
    return f"<g {height}>{drawn}</g>"


def runs_of(kinds: Sequence[str | None]) -> Iterator[tuple[int, int, str]]:
    """Yield the neighbors of one shade together: position of the first, number, shade."""
    begin = 0
    for position in range(1, len(kinds) + 1):
        if position == len(kinds) or kinds[position] != kinds[begin]:
            kind = kinds[begin]
            if kind is not None:
                yield begin, position - begin, kind
            begin = position


def _place(left: float, side: float, row: int, column: int, count: int) -> str:
    """Return a line as thick as a row is high, over some squares."""
    return f"M{left + side * column:.2f} {4 + side * (row + 0.5):.2f}h{side * count + _OVERLAP:.2f}"


def _names(parts: Sequence[str], left: float, side: float) -> str:
    """Write the names of as many rows and columns as have room."""
    stride = max(1, -(-ROW // side)) if side else 1
    rows = range(0, len(parts), int(stride))
    drawn = "".join(text((left - 5, 4 + side * (i + 0.5) + 4), parts[i], "end") for i in rows)
    places = [left + side * (j + 0.5) for j in range(len(parts))]
    kept = thinned_labels(places, parts, _WIDTH)
    labels = spread_labels([places[j] for j in kept], [parts[j] for j in kept], _WIDTH) or []
    below = 4 + side * len(parts) + FONT_SIZE + 3
    return drawn + "".join(text((label.middle, below), label.words, "middle") for label in labels)
