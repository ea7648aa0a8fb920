"""Charts as a reader sees them: their marks, their texts with the room that these take, and their classes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from ema_cli.report.charts.canvas import Box
from ema_cli.report.charts.lettering import text_width

Place = tuple[float, float]
_TOKEN = re.compile(r"[A-Za-z]|-?\d*\.?\d+(?:e[+-]?\d+)?")
_PER_COMMAND = {"m": 2, "l": 2, "h": 1, "v": 1, "a": 7, "z": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A path or a rectangle."""

    classes: frozenset[str]
    corners: tuple[Place, ...]
    tip: str
    """What is shown under the mouse."""

    @property
    def box(self) -> Box:
        """The room of the shape."""
        xs, ys = zip(*self.corners, strict=True)
        return Box(left=min(xs), right=max(xs), top=min(ys), bottom=max(ys))


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A text at its place."""

    classes: frozenset[str]
    words: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One of the sizes of a chart."""

    name: str
    sheet: Box
    sentence: str
    shapes: tuple[Shape, ...]
    texts: tuple[Words, ...]

    def having(self, kind: str) -> list[Shape]:
        """Return the shapes of a class."""
        return [shape for shape in self.shapes if kind in shape.classes]

    def overlaps(self) -> list[tuple[str, str]]:
        """Return the pairs of texts that are on each other."""
        return [(a.words, b.words) for a, b in combinations(self.texts, 2) if a.box.touches(b.box)]


def drawings(chart: str) -> list[Drawing]:
    """Return the sizes of a chart; an error if it is not well formed."""
    return [_drawing(element) for element in ET.fromstring(chart) if element.tag == "svg"]


def _drawing(svg: ET.Element) -> Drawing:
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    assert svg.attrib["role"] == "img"
    return Drawing(
        name=svg.attrib["class"],
        sheet=Box(left=left, top=top, right=left + width, bottom=top + height),
        sentence=svg.attrib["aria-label"],
        shapes=tuple(_shape(one) for one in svg.iter() if one.tag in {"path", "rect"}),
        texts=tuple(map(_words, svg.iter("text"))),
    )


def _shape(element: ET.Element) -> Shape:
    if element.tag == "rect":
        x, y, width, height = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
        assert width >= 0
        corners = [(x, y), (x + width, y + height)]
    else:
        corners = list(corners_of(element.attrib["d"]))
    tip = element.findtext("title", "")
    return Shape(classes=frozenset(element.attrib["class"].split()), corners=tuple(corners), tip=tip)


def _words(element: ET.Element) -> Words:
    words = element.text or ""
    classes = frozenset(element.attrib["class"].split())
    x, y, width = float(element.attrib["x"]), float(element.attrib["y"]), text_width(words)
    x -= width / 2 if "middle" in classes else width if "end" in classes else 0
    return Words(classes=classes, words=words, box=Box(left=x, right=x + width, top=y - 9, bottom=y + 2))


def corners_of(shape: str) -> Iterator[Place]:
    """Yield the corners of a path, as absolute places."""
    tokens = _TOKEN.findall(shape)[::-1]
    assert "".join(tokens[::-1]) == re.sub(r"[ ,]", "", shape), shape
    x = y = start_x = start_y = 0.0
    command = ""
    while tokens:
        command = tokens.pop() if tokens[-1].isalpha() else {"M": "L", "m": "l"}.get(command, command)
        numbers = [float(tokens.pop()) for _ in range(_PER_COMMAND[command.lower()])]
        base_x, base_y = (x, y) if command.islower() else (0.0, 0.0)
        match command.lower():
            case "h":
                x = base_x + numbers[0]
            case "v":
                y = base_y + numbers[0]
            case "z":
                x, y = start_x, start_y
            case _:
                x, y = base_x + numbers[-2], base_y + numbers[-1]
        if command in "Mm":
            start_x, start_y = x, y
        yield x, y
