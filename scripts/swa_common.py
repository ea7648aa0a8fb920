"""What the scripts that measure averages share: learning rates, training to disk, our commands, statistics, a plot.

A training is a ``Task`` of ``real_runs.py``. Its checkpoints are averaged by ``ema-avg`` in a process of its own, as
users do it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from real_runs import Rate, Task, steps_of
from safetensors.torch import save_file

SCRIPTS = Path(__file__).resolve().parent
RECORDS = SCRIPTS / "records"


def command_line(description: str | None, *, seeds: int) -> argparse.Namespace:
    """Return the options of a script, which trains ``seeds`` times by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, metavar="N", help="train with the seeds 1 to N")
    parser.add_argument("--tune", action="store_true", help="compare learning rates and windows")
    parser.add_argument("--quick", action="store_true", help="a small budget, for a test")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="FOLDER", help="the folder of the plot")
    return parser.parse_args()


def constant(_: int) -> float:
    """Return a constant learning rate."""
    return 1.0


def cosine(steps: int) -> Rate:
    """Return a learning rate that decays to zero as a cosine over the whole training."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def decayed(start: int, steps: int) -> Rate:
    """Return a learning rate that is constant until ``start`` and then decays to zero as 1 - sqrt(x) (Hagele 2024)."""
    return lambda step: 1.0 if step <= start else 1 - math.sqrt((step - start - 1) / (steps - start))


def cyclical(start: int, cycle: int, low: float) -> Rate:
    """Return a learning rate that is constant until ``start`` and then falls from 1 to ``low`` in every cycle.

    Izmailov et al. 2018, section 3.1: alpha(i) = (1 - t(i)) alpha_1 + t(i) alpha_2, t(i) = (mod(i - 1, c) + 1) / c.
    """

    def rate(step: int) -> float:
        place = ((step - start - 1) % cycle + 1) / cycle
        return 1.0 if step <= start else 1 - place + place * low

    return rate


def train(task: Task, rate: Rate, steps: int, saved: Collection[int], folder: Path, *, after: int = 0) -> None:
    """Train from step ``after`` to ``steps``, and save ``folder/ckpt_STEP.safetensors`` after the ``saved`` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for step, _ in steps_of(task, rate, steps, after=after):
        if step in saved:
            save_file(task.state(), checkpoint(folder, step))


def checkpoint(folder: Path, step: int) -> Path:
    """Return the path of a checkpoint."""
    return folder / f"ckpt_{step}.safetensors"


def ema_avg(*arguments: object, output: Path, **variables: str) -> Path:
    """Run ``ema-avg`` in the folder of the scripts, so that it finds their modules; return the output.

    ``variables`` are added to the environment.
    """
    command = [sys.executable, "-m", "ema_cli", *map(str, arguments), "-o", str(output)]
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(SCRIPTS.parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **variables}
    done = subprocess.run(command, cwd=SCRIPTS, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return output


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Some weights of a training: an average, or the last checkpoint."""

    training: str
    name: str
    options: tuple[str, ...] = ()
    """Of ``ema-avg``; none for the last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean of independent measurements, and its standard error."""

    mean: float
    error: float
    """0 for one measurement."""

    def text(self, digits: int, *, sign: bool = False) -> str:
        """Return such as ``1.23 ± 0.04``."""
        return f"{self.mean:{'+' if sign else ''}.{digits}f} ± {self.error:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and the standard error of one value per seed."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(mean=statistics.fmean(values), error=error)


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Return the estimate of a - b, paired by seed."""
    return estimate([x - y for x, y in zip(a, b, strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a plot, with an error band."""

    color: str
    points: Mapping[float, Estimate]
    """By x."""
    dashed: bool = False


COLORS = ("#767676", "#3b82f6", "#d97706", "#16a34a", "#c2410c", "#a855f7")
"""Readable on white and on dark backgrounds: a contrast of at least 3 with both."""
WIDTH, HEIGHT = 820, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 40, 52
"""Margins of the plot in pixels; the labels of the lines are in the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """From data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixels of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def plot(path: Path, lines: Mapping[str, Line], *, title: str, x: str, y: str, limits: tuple[float, float]) -> None:
    """Write an SVG file of lines with bands of one standard error; ``limits`` are those of y."""
    places = [place for line in lines.values() for place in line.points]
    axes = Axes(x=(min(places), max(places)), y=limits)
    body = [f'<text x="{LEFT}" y="20" font-weight="600">{escape(title)}</text>', *grid(axes, x, y)]
    for line in lines.values():
        body += drawn(axes, line)
    body += labels(axes, lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#767676" role="img" aria-label="{escape(title)}">\n'
        f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>\n' + "\n".join(body) + "\n</svg>\n",
        encoding="utf-8",
    )


def ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers between two numbers."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / raw)))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def grid(axes: Axes, x: str, y: str) -> list[str]:
    """Return the grid lines and the names of the axes."""
    drawn_lines = []
    for value in ticks(*axes.y):
        left, level = axes.place(axes.x[0], value)
        drawn_lines += [
            f'<path d="M{left} {level:.1f}H{WIDTH - RIGHT}" stroke="#767676" stroke-opacity="0.3"/>',
            f'<text x="{left - 8}" y="{level + 4:.1f}" text-anchor="end">{value:.4g}</text>',
        ]
    for value in ticks(*axes.x):
        across, bottom = axes.place(value, axes.y[0])
        drawn_lines.append(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    height = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(16 {height}) rotate(-90)"'
    return [
        *drawn_lines,
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>',
        f'<text {turned} text-anchor="middle">{escape(y)}</text>',
    ]


def drawn(axes: Axes, line: Line) -> list[str]:
    """Return the band and the line."""
    places = sorted(line.points)
    upper = [axes.place(x, line.points[x].mean + line.points[x].error) for x in places]
    lower = [axes.place(x, line.points[x].mean - line.points[x].error) for x in reversed(places)]
    middle = [axes.place(x, line.points[x].mean) for x in places]
    band, stroke = (" ".join(f"{x:.1f},{y:.1f}" for x, y in points) for points in (upper + lower, middle))
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    end_x, end_y = middle[-1]
    return [
        f'<g clip-path="url(#inside)"><polygon points="{band}" fill="{line.color}" fill-opacity="0.18"/>',
        f'<polyline points="{stroke}" fill="none" stroke="{line.color}" stroke-width="2"{dashes}/></g>',
        f'<circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="3" fill="{line.color}"/>',
    ]


def labels(axes: Axes, lines: Mapping[str, Line]) -> list[str]:
    """Return the names of the lines beside their ends, at least a line of text apart."""
    ends = sorted(
        (axes.place(max(line.points), line.points[max(line.points)].mean)[1], name) for name, line in lines.items()
    )
    written, below = [], TOP - 16.0
    for height, name in ends:
        below = max(below + 16, height)
        color = lines[name].color
        written.append(f'<text x="{WIDTH - RIGHT + 10}" y="{below + 4:.1f}" fill="{color}">{escape(name)}</text>')
    return written
