"""The drift of every tensor in model order, as a strip of some shades."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ema_cli.report.charts.axes import spread_labels, thinned_labels
from ema_cli.report.charts.canvas import Size, finite, path, sheet, text, units, wide_and_narrow
from ema_cli.report.charts.curves import percent_of
from ema_cli.report.charts.heat_map import runs_of
from ema_cli.report.charts.lettering import FONT_SIZE, ROW, shortened, text_width
from ema_cli.report.charts.shades import LEGEND_HEIGHT, Shades, shades
from ema_cli.text import plural

_HEIGHT = 36
_MOST_TIPS = 200
"""Tensors that each have a text under the mouse."""
_LEAST_FIELD = 1.0
"""Width of a field; with more tensors, a field is the largest drift of several."""
_LONGEST_NAME = 150.0


def drift_strip(values: Sequence[float | None], names: Sequence[str]) -> str:
    """Draw the drift of tensors, in model order, as percent.

    Args:
        values: the drift of every tensor, a share; a tensor without one stays empty.
        names: the names of the tensors.

    """
    shares = [None if (value := finite(one)) is None else finite(100 * value) for one in values]
    scale = shades(shares, unit=" %")
    largest = max(((value, name) for value, name in zip(shares, names, strict=True) if value is not None), default=None)
    sentence = f"Drift of {plural(len(values), 'tensor')} in model order"
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
    """Return a line as thick as the strip, over some fields."""
    return f"M{first * width:.2f} {_HEIGHT / 2:g}h{count * width:.2f}"


def _names(names: Sequence[str], size: Size) -> str:
    """Write the names of some layers below their first tensors, as many as there is room for."""
    layers = [layer_of(name) for name in names]
    starts = [k for k in range(len(layers)) if k == 0 or layers[k] != layers[k - 1]]
    words = [shortened(name, _LONGEST_NAME) for name in without_common_layer([layers[k] for k in starts])]
    places = [size.width * k / len(names) + text_width(name) / 2 for k, name in zip(starts, words, strict=True)]
    kept = thinned_labels(places, words, size.width)
    labels = spread_labels([places[k] for k in kept], [words[k] for k in kept], size.width) or []
    marks = "".join(f"M{units(size.width * starts[k] / len(names))} {_HEIGHT}v5" for k in kept)
    return path("axis", marks) + "".join(
        text((one.middle, _HEIGHT + 6 + FONT_SIZE), one.words, "middle") for one in labels
    )


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to: its name up to the first number, or without its last part."""
    parts = name.split(".")
    number = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[:-1]) or name


def _can_be_cut(parts: Sequence[str], count: int) -> bool:
    """Whether a name without its first parts is still one: not empty, and not a number alone."""
    return len(parts) > count and not parts[count].isdecimal()


def without_common_layer(layers: Sequence[str]) -> list[str]:
    """Return the names of layers without the parts at the beginning that all of them share."""
    split = [layer.split(".") for layer in layers]
    shared = 0
    while len({tuple(parts[: shared + 1]) for parts in split}) == 1 and all(_can_be_cut(p, shared + 1) for p in split):
        shared += 1
    return [".".join(parts[shared:]) for parts in split]
