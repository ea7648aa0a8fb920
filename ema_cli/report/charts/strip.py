"""The drift of every tensor in model order, as a strip of some shades."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ema_cli.report.charts.axes import spread_labels
from ema_cli.report.charts.canvas import Size, finite, path, sheet, text, units, wide_and_narrow
from ema_cli.report.charts.curves import percent_of
from ema_cli.report.charts.heat_map import runs_of
from ema_cli.report.charts.lettering import FONT_SIZE, ROW, shortened
from ema_cli.report.charts.shades import LEGEND_HEIGHT, Shades, shades

_HEIGHT = 36
_MOST_TIPS = 200
"""Tensors that each have a text under the mouse."""
_LEAST_FIELD = 1.0
"""Width of a field; with more tensors, a field is the largest drift of several."""
_LEAST_NAME = 110.0
"""Room for the name of a tensor below the strip."""


def drift_strip(values: Sequence[float | None], names: Sequence[str]) -> str:
    """Draw the drift of tensors, in model order, as percent.

    Args:
        values: the drift of every tensor, a share; a tensor without one stays empty.
        names: the names of the tensors.

    """
    shares = [None if (value := finite(one)) is None else finite(100 * value) for one in values]
    scale = shades(shares, unit=" %")
    largest = max(((value, name) for value, name in zip(shares, names, strict=True) if value is not None), default=None)
    sentence = f"Drift of {len(values):,} tensors in model order"
    sentence += f"; the largest is {percent_of(largest[0])}, of {largest[1]}." if largest else "."

    def draw(size: Size) -> str:
        inside = _fields(size, shares, names, scale) + _names(names, size)
        top = _HEIGHT + FONT_SIZE + ROW
        inside += scale.legend(2, top, min(size.width - 24, 420))
        return sheet(size.name, size.width, top + LEGEND_HEIGHT, inside, sentence)

    return wide_and_narrow("drift", draw)


def _fields(size: Size, values: Sequence[float | None], names: Sequence[str], scale: Shades) -> str:
    """Draw a field per tensor, or per some neighbors; each alone with a text if they are few."""
    together = max(1, -(-len(values) * _LEAST_FIELD // size.width))
    fields = [_largest(values[k : k + int(together)]) for k in range(0, len(values), int(together))]
    width = size.width / max(1, len(fields))
    if size.has_tips and len(values) <= _MOST_TIPS:
        return "".join(
            path(f"shade field {scale.kind(value)}", _place(k, 1, width), f"{name}: {percent_of(value)}")
            for k, (value, name) in enumerate(zip(values, names, strict=True))
            if value is not None
        )
    shapes: dict[str, list[str]] = defaultdict(list)
    for first, count, kind in runs_of([None if value is None else scale.kind(value) for value in fields]):
        shapes[kind].append(_place(first, count, width))
    return "".join(path(f"shade field {kind}", "".join(places)) for kind, places in sorted(shapes.items()))


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _place(first: int, count: int, width: float) -> str:
    return f"M{first * width:.2f} {_HEIGHT / 2:g}h{count * width:.2f}"


def _names(names: Sequence[str], size: Size) -> str:
    """Write some names below their tensors, evenly spaced, the first and the last among them."""
    count = min(len(names), int(size.width // (2 * _LEAST_NAME)) + 1)
    picked = sorted({round(k * (len(names) - 1) / max(1, count - 1)) for k in range(count)})
    width = size.width / max(1, len(names))
    places = [width * (k + 0.5) for k in picked]
    for room in range(200, 20, -20):
        shown = [shortened(names[k], room) for k in picked]
        labels = spread_labels(places, shown, size.width)
        if labels is not None:
            break
    else:
        return ""
    marks = path("axis", "".join(f"M{units(place)} {_HEIGHT + 1}v4" for place in places))
    return marks + "".join(text((one.middle, _HEIGHT + 6 + FONT_SIZE), one.words, "middle") for one in labels)
