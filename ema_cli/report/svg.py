"""Small charts as SVG text: numbers in, markup out. Colors and fonts come from the style sheet of the page.

Text in a chart is escaped here; coordinates are rounded to a tenth of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 30
_LEVELS = 8
_STRIP_HEIGHT = 34
_MOST_DOTS = 200
"""Dots on a step chart; with more points, only the line is drawn."""
_MOST_SQUARES = 64
"""Squares along a side of a heat map; of more rows, this many are drawn, evenly spaced."""

Point = tuple[float, float]
Line = Callable[[float], float]
"""A linear map from numbers to pixels."""


def steps_chart(xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str) -> str:
    """Draw a step chart of increasing ``xs``, at least one: y, at most about 1, is constant from the previous x."""
    across = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    up = _scale(0, max(1.0, *ys), HEIGHT - _BOTTOM, _TOP)
    corners = [f"M{across(xs[0]):.1f} {up(ys[0]):.1f}"]
    for x, y in zip(xs[1:], ys[1:], strict=True):
        corners.append(f"V{up(y):.1f}H{across(x):.1f}")
    shown = zip(xs, ys, strict=True) if len(xs) <= _MOST_DOTS else ()
    dots = "".join(_dot(across(x), up(y), f"{x:,g}: {y:.3g}") for x, y in shown)
    axes = _axes((min(xs), max(xs)), (0, max(1.0, *ys)), x_label, y_label)
    return _svg(f'{axes}<path class="line" d="{"".join(corners)}"/>{dots}', f"{y_label} over {x_label}")


def path_chart(
    path: Sequence[Point], names: Sequence[str], averages: Sequence[tuple[str, Point]], labels: tuple[str, str]
) -> str:
    """Draw the checkpoints in a plane, connected in order, and the averages; both axes have the same scale."""
    points = [*path, *(point for _, point in averages)]
    across, up = _equal_scales(points)
    line = "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in path)
    dots = "".join(_dot(across(x), up(y), name) for (x, y), name in zip(path, names, strict=True))
    first, last = path[0], path[-1]
    ends = _note(across(first[0]), up(first[1]), "first") + _note(across(last[0]), up(last[1]), "last")
    stars = "".join(_star(across(x), up(y), name) for name, (x, y) in averages)
    frame = f'<text class="label" x="{_LEFT}" y="{HEIGHT - 6}">{escape(labels[0])}</text>'
    frame += f'<text class="label" transform="translate(12 {HEIGHT - _BOTTOM}) rotate(-90)">{escape(labels[1])}</text>'
    return _svg(f'{frame}<path class="line thin" d="{line}"/>{dots}{ends}{stars}', "path of the run in a plane")


def heat_map(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """Draw a symmetric matrix as squares, darker for larger numbers; all squares of a level are one path."""
    picked = [round(k * (len(matrix) - 1) / (_MOST_SQUARES - 1)) for k in range(_MOST_SQUARES)]
    if len(matrix) > _MOST_SQUARES:
        matrix, names = [[matrix[i][j] for j in picked] for i in picked], [names[i] for i in picked]
    count = len(matrix)
    side = min(HEIGHT - _TOP - _BOTTOM, WIDTH - _LEFT - _RIGHT) / count
    left = (WIDTH - side * count) / 2
    largest = max(map(max, matrix)) or 1.0
    squares = _shades(
        (value / largest, f"M{left + j * side:.1f} {_TOP + i * side:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z")
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    )
    below = f'<text class="label" x="{left:.1f}" y="{HEIGHT - 12}">{escape(names[0])}</text>'
    below += f'<text class="label end" x="{left + side * count:.1f}" y="{HEIGHT - 12}">{escape(names[-1])}</text>'
    return _svg(squares + below, "distances between the checkpoints")


def strip(values: Sequence[float], names: Sequence[str]) -> str:
    """Draw numbers as a strip of equal fields, darker for larger numbers."""
    wide, largest = 880, max(values) or 1.0
    width = wide / len(values)
    if len(values) <= _LEVELS * 25:  # few enough to name each
        fields = "".join(
            f'<path class="shade" style="--level:{_level(value / largest)}" d="{_field(i, width)}">'
            f"<title>{escape(name)}: {100 * value:.3g} %</title></path>"
            for i, (value, name) in enumerate(zip(values, names, strict=True))
        )
    else:
        fields = _shades((value / largest, _field(i, width)) for i, value in enumerate(values))
    return (
        f'<svg class="strip" viewBox="0 0 {wide} {_STRIP_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="drift per tensor in model order">{fields}</svg>'
    )


def _field(number: int, width: float) -> str:
    return f"M{number * width:.2f} 0h{width:.2f}v{_STRIP_HEIGHT}h-{width:.2f}z"


def _shades(shapes: Iterable[tuple[float, str]]) -> str:
    """Draw shapes, each with its share of the largest number; all of a level are one path."""
    levels: list[list[str]] = [[] for _ in range(_LEVELS)]
    for share, shape in shapes:
        levels[_level(share)].append(shape)
    return "".join(
        f'<path class="shade" style="--level:{level}" d="{"".join(paths)}"/>'
        for level, paths in enumerate(levels)
        if paths
    )


def _level(share: float) -> int:
    """Return the level of a number in [0, 1], by its square root, so that small numbers differ too."""
    return min(_LEVELS - 1, int(_LEVELS * math.sqrt(max(share, 0))))


def _line(offset: float, slope: float) -> Line:
    return lambda value: offset + slope * value


def _scale(low: float, high: float, start: float, stop: float) -> Line:
    span = high - low or 1.0
    return _line(start - low * (stop - start) / span, (stop - start) / span)


def _equal_scales(points: Sequence[Point]) -> tuple[Line, Line]:
    """Return lines with the same slope for both axes, with the points centered."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    room = WIDTH - _LEFT - _RIGHT - 40, HEIGHT - _TOP - _BOTTOM - 16
    spans = max(xs) - min(xs), max(ys) - min(ys)
    slope = min(room[k] / spans[k] for k in (0, 1) if spans[k] > 0) if any(spans) else 1.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    centre = (WIDTH + _LEFT - _RIGHT) / 2, (HEIGHT + _TOP - _BOTTOM) / 2
    return _line(centre[0] - slope * middle[0], slope), _line(centre[1] + slope * middle[1], -slope)


def _axes(xs: Point, ys: Point, x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    lines = f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
    texts = (
        (_LEFT - 6, _TOP + 4, f"{ys[1]:.3g}", "end"),
        (_LEFT - 6, bottom + 4, f"{ys[0]:.3g}", "end"),
        (_LEFT, HEIGHT - 10, f"{xs[0]:,g}", ""),
        (right, HEIGHT - 10, f"{xs[1]:,g}", "end"),
        ((_LEFT + right) / 2, HEIGHT - 10, x_label, "middle"),
    )
    words = "".join(
        f'<text class="label {kind}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>' for x, y, text, kind in texts
    )
    upright = f'transform="translate(12 {(_TOP + bottom) / 2:.0f}) rotate(-90)"'
    return f'{lines}{words}<text class="label middle" {upright}>{escape(y_label)}</text>'


def _dot(x: float, y: float, title: str) -> str:
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(title)}</title></circle>'


def _star(x: float, y: float, name: str) -> str:
    """Mark an average, with its name on the side with more room."""
    diamond = f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"
    end = x > WIDTH / 2
    attributes = f'class="label strong{" end" if end else ""}" x="{x + (-11 if end else 11):.1f}" y="{y + 4:.1f}"'
    title = escape(name)
    return f'<path class="average" d="{diamond}"><title>{title}</title></path><text {attributes}>{title}</text>'


def _note(x: float, y: float, text: str) -> str:
    return f'<text class="label middle" x="{x:.1f}" y="{y - 8:.1f}">{escape(text)}</text>'


def _svg(inside: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'
