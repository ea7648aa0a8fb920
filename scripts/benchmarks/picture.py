"""Pictures as SVG: bars of several programs, and lines with logarithmic axes. Readable on white and on dark pages."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_COLORS = ("#3b82f6", "#d97706", "#16a34a", "#c2410c", "#a855f7", "#767676")
"""A contrast of at least 3 with white and with a dark page."""
_ROW, _PANEL, _GAP, _TOP = 26, 250, 30, 64
"""Pixels: height of a row of bars, width and distance of panels, height of title and legend."""
_NAMES = 150
_HEIGHT, _LEFT, _BOTTOM = 240, 64, 50
"""Pixels of a panel of lines, and of its labels."""


class Bar(NamedTuple):
    """A number of a program."""

    row: str
    series: str
    value: float


def bars(title: str, panels: Mapping[str, Sequence[Bar]]) -> str:
    """Return a picture with a panel for each kind of number, a row for each program, a bar for each series."""
    rows = list(dict.fromkeys(bar.row for panel in panels.values() for bar in panel))
    series = list(dict.fromkeys(bar.series for panel in panels.values() for bar in panel))
    body = [text(8, _TOP + _ROW * (i + 0.5) + 5, row, weight=600 * (i == 0)) for i, row in enumerate(rows)]
    for number, (name, panel) in enumerate(panels.items()):
        left = _NAMES + number * (_PANEL + _GAP)
        body.append(text(left, _TOP - 8, name, weight=600))
        scale = (_PANEL - 44) / max((bar.value for bar in panel), default=1)
        thick = (_ROW - 4) / max(1, len(series))
        for bar in panel:
            top = _TOP + _ROW * rows.index(bar.row) + thick * series.index(bar.series)
            width = max(1.0, bar.value * scale)
            color = _COLORS[series.index(bar.series)]
            body.append(f'<rect x="{left}" y="{top:.1f}" width="{width:.1f}" height="{thick:.1f}" fill="{color}"/>')
            words = f"{bar.value:,.0f}" if bar.value >= 100 else f"{bar.value:.2g}"
            body.append(text(left + width + 4, top + thick - 1.5, words, size=10))
    return sheet(title, _NAMES + len(panels) * (_PANEL + _GAP), _TOP + _ROW * len(rows) + 8, body, series)


class Panel(NamedTuple):
    """Lines with the same axes."""

    x: str
    lines: Mapping[str, Mapping[float, float]]
    """By name, y by x; all positive."""


def lines(title: str, y: str, panels: Sequence[Panel]) -> str:
    """Return a picture with panels beside each other that have the same logarithmic y axis."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    values = [value for panel in panels for line in panel.lines.values() for value in line.values()]
    heights = _Log(_decade(min(values), -1), _decade(max(values), 1), _TOP + _HEIGHT, _TOP + 8)
    body = [
        f'<text transform="translate(14 {_TOP + _HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
        *(text(_LEFT - 8, heights(tick) + 4, f"{tick:,g}", anchor="end") for tick in heights.ticks()),
    ]
    for number, panel in enumerate(panels):
        body += _panel(panel, names, heights, _LEFT + number * (_PANEL + _GAP))
    return sheet(title, _LEFT + len(panels) * (_PANEL + _GAP), _TOP + _HEIGHT + _BOTTOM, body, names)


def _panel(panel: Panel, names: Sequence[str], heights: "_Log", left: float) -> list[str]:
    places = sorted({x for line in panel.lines.values() for x in line})
    across = _Log(places[0], places[-1], left + 12, left + _PANEL - 12)
    levels = "".join(f"M{left} {heights(tick):.1f}H{left + _PANEL}" for tick in heights.ticks())
    body = [
        f'<path d="{levels}" stroke="#767676" stroke-opacity="0.3"/>',
        text(left + _PANEL / 2, _TOP + _HEIGHT + 38, panel.x, anchor="middle"),
        *(text(across(x), _TOP + _HEIGHT + 18, short(x), anchor="middle") for x in places),
    ]
    for name, line in panel.lines.items():
        color = _COLORS[names.index(name)]
        points = [(across(x), heights(line[x])) for x in sorted(line)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
    return body


class _Log(NamedTuple):
    """From a positive number to a place on a logarithmic axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low) if self.high > self.low else 0.5
        return self.start + part * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return the powers of ten."""
        low, high = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
        return [10.0**power for power in range(low, high + 1)]


def _decade(value: float, direction: int) -> float:
    power = math.log10(value)
    return float(10.0 ** (math.floor(power) if direction < 0 else math.ceil(power)))


def short(value: float) -> str:
    """Return a number of an axis: ``100k``."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: int = 0, size: int = 0) -> str:
    """Return a line of text."""
    more = f' font-weight="{weight}"' * bool(weight) + f' font-size="{size}"' * bool(size)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def sheet(title: str, width: float, height: float, body: Sequence[str], names: Sequence[str]) -> str:
    """Return the whole picture, with a title and a legend."""
    legend, left = [], 8.0
    for name, color in zip(names, _COLORS, strict=False):
        legend += [f'<rect x="{left}" y="28" width="10" height="10" fill="{color}"/>', text(left + 15, 38, name)]
        left += 40 + 7 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#767676" role="img" aria-label="{escape(title)}">\n'
        + "\n".join([text(8, 18, title, weight=600), *legend, *body])
        + "\n</svg>\n"
    )
