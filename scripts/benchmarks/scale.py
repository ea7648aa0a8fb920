"""Curves: peak memory and time against the size of a model, its tensors, its checkpoints, decays and threads.

The first three use sparse files of zeros, which change no buffer and take no room on the disk; the output does. A point
whose output does not fit on the disk, or whose naive loop does not fit into half of the free memory, is left out.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from .commands import naive, ours
from .measure import Job, Rows, Sample, Settings, in_turn, note, size
from .picture import Panel, lines
from .series import Series, on_disk

CURVES = ("size", "checkpoints", "tensors", "decays", "threads")
_PICTURED = {"size": "size of a checkpoint (GB)", "checkpoints": "checkpoints", "tensors": "tensors of a checkpoint"}
_SLOW_BYTES = 8e9
"""Runs that read more are measured once."""


class Point(NamedTuple):
    """A place on a curve."""

    x: float
    label: str
    series: Series
    options: Sequence[object] = ()
    """Of ema-avg, after its decay."""
    before: Sequence[object] = ()
    """The command that runs the contenders."""
    decays: Sequence[float] = (0.9,)
    compare: bool = True
    """Whether the naive loop runs, too."""
    cold: bool = False


def scale(settings: Settings) -> Rows:
    """Measure the curves, and draw peak memory."""
    contenders = ("ema-avg", "naive")
    numbers = ("time", "processor time", "peak memory", "of it anonymous")
    yield "curve", "point", *(f"{name}: {number}" for name in contenders for number in numbers)
    curves: dict[str, Callable[[Settings], Iterator[Point]]] = {
        "size": _sizes,
        "checkpoints": _counts,
        "tensors": _tensors,
        "decays": _decays,
        "threads": _threads,
    }
    found: dict[str, dict[str, dict[float, float]]] = {}
    for curve in settings.curves:
        peaks: dict[str, dict[float, float]] = {name: {} for name in contenders}
        for series, points in groupby(curves[curve](settings), lambda point: point.series):
            with on_disk(series, settings) as paths:
                for point in points:
                    samples = _measured(curve, point, paths, settings)
                    if samples:
                        yield curve, point.label, *(cell for name in contenders for cell in _cells(samples.get(name)))
                    for name, sample in samples.items():
                        peaks[name][point.x] = sample.peak_bytes / 1e6
        found[curve] = {name: line for name, line in peaks.items() if line}
    panels = [Panel(axis, found[curve]) for curve, axis in _PICTURED.items() if found.get(curve)]
    if settings.records and panels:
        picture = lines("Peak memory of one average", "peak memory (MB)", panels)
        (settings.records / "scale.svg").write_text(picture, encoding="utf-8")


def _measured(curve: str, point: Point, paths: Sequence[Path], settings: Settings) -> Mapping[str, Sample]:
    series = point.series
    needed = series.data_bytes() * len(point.decays) * 1.1
    if shutil.disk_usage(settings.scratch).free < needed + 2e9:
        note(f"{curve}, {point.label}: left out, its output of {size(needed)} does not fit on the disk")
        return {}
    rounds = 1 if series.data_bytes() * series.checkpoints > _SLOW_BYTES else settings.rounds
    files = () if series.sparse else paths
    command = [*point.before, *ours(paths, settings, *point.decays), *point.options]
    jobs = {"ema-avg": Job(command, files, point.cold)}
    if point.compare and 2.5 * series.data_bytes() < _free_memory() / 2:
        jobs["naive"] = Job([*point.before, *naive(paths, settings)], files, point.cold)
    return in_turn(f"{curve}, {point.label}", jobs, settings, rounds=rounds)


def _free_memory() -> float:
    lines_found = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines_found if line.startswith("MemAvailable"))


def _cells(sample: Sample | None) -> list[str]:
    if sample is None:
        return [""] * 4
    memory = (sample.peak_bytes, sample.anonymous_bytes)
    return [f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s", *(f"{part / 1e6:,.0f} MB" for part in memory)]


def _sizes(settings: Settings) -> Iterator[Point]:
    for gb in (0.1, 0.5, 2, 4, 16, 64)[: 2 if settings.small else None]:
        model_bytes = gb * 1e9 * (0.02 if settings.small else 1)
        if model_bytes <= settings.most_bytes:
            series = Series(2, 40, int(model_bytes / 160), sparse=True)
            yield Point(gb, f"2 x {size(model_bytes)}, sparse", series)


def _counts(settings: Settings) -> Iterator[Point]:
    for count in (2, 10, 100, 1000)[: 2 if settings.small else None]:
        series = Series(count, 40, settings.model_bytes // 32 // 160, sparse=True)
        yield Point(count, f"{count:,} x {size(series.data_bytes())}, sparse", series)


def _tensors(settings: Settings) -> Iterator[Point]:
    for count in (1, 100, 10_000, 100_000)[: 2 if settings.small else None]:
        series = Series(settings.checkpoints, count, max(1, settings.model_bytes // 20 // count), sparse=True)
        label = f"{series.checkpoints} x {size(series.data_bytes())} in {count:,} tensors, sparse"
        yield Point(count, label, series)


def _decays(settings: Settings) -> Iterator[Point]:
    few = Series(settings.checkpoints, 40, settings.model_bytes // 160)
    many = Series(8 * settings.checkpoints, 40, settings.model_bytes // 8 // 160)
    for series in (few, many)[: 1 if settings.small else None]:
        for cold in (False, True)[: 1 if settings.small else None]:
            for count in (1, 2, 4, 8)[: 2 if settings.small else None]:
                decays = [0.9, 0.5, 0.6, 0.7, 0.8, 0.95, 0.98, 0.99][:count]
                cache = "cold" if cold else "warm"
                label = f"{count} of {series.checkpoints} x {size(series.data_bytes())}, {cache}"
                yield Point(count, label, series, decays=decays, cold=cold, compare=False)


def _threads(settings: Settings) -> Iterator[Point]:
    cores = sorted(os.sched_getaffinity(0))
    series = Series(settings.checkpoints, 40, settings.model_bytes // 160)
    for some in sorted({1, len(cores)}):
        for threads in sorted({1, 2, 4, 8, len(cores)}):
            if threads <= max(2, some):
                before = ["taskset", "-c", ",".join(map(str, cores[:some]))]
                label = f"{threads} threads on {some} cores, {series.checkpoints} x {size(series.data_bytes())}, warm"
                yield Point(threads, label, series, ("--threads", threads), before, compare=threads == 1)
