"""Curves: peak memory and time against the size of a model, its tensors, its checkpoints, decays and threads.

Sizes and numbers of checkpoints are measured with sparse files, which take little room on the disk and change no
buffer; the output takes all of its room. It is written in bfloat16 where it would not fit otherwise.
"""

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from .commands import cat_and_copies, naive, ours
from .measure import Job, Rows, Sample, Settings, in_turn, peak, size
from .picture import Panel, lines
from .series import Series, on_disk

CURVES = ("size", "checkpoints", "tensors", "decays", "threads")
_PICTURED = {
    "size": "size of a checkpoint (GB)",
    "checkpoints": "checkpoints",
    "tensors": "tensors of a checkpoint",
    "decays": "decays in one pass",
}
_CONTENDERS = ("ema-avg", "naive")
_COPIES = "cat + copies + sync"
_DECAYS = (0.9, 0.5, 0.6, 0.7, 0.8, 0.95, 0.98, 0.99)
_SLOW_BYTES = 8e9
"""A series of more bytes is measured once."""
_CACHED = 0.8
"""Share of the free memory that a series may take in the page cache; a larger one is not read before."""
_SPARE_BYTES = 2e9
"""Of the disk."""


class Point(NamedTuple):
    """A place on a curve."""

    x: float
    label: str
    series: Series
    options: Sequence[object] = ()
    """Of ema-avg, after its decay."""
    before: Sequence[object] = ()
    """The command that runs the contenders."""
    compare: bool = True
    """Whether the naive loop runs, too."""


def scale(curve: str, settings: Settings) -> Rows:
    """Measure a curve."""
    if curve == "decays":
        yield from _decays(settings)
        return
    numbers = ("time", "processor time", "peak memory", "of it anonymous")
    yield curve, *(f"{name}: {number}" for name in _CONTENDERS for number in numbers)
    points = {"size": _sizes, "checkpoints": _counts, "tensors": _tensors, "threads": _threads}[curve]
    for series, of_series in groupby(points(settings), lambda point: point.series):
        with on_disk(series, settings) as paths:
            for point in of_series:
                yield _row(point, paths, settings)


def keep(curve: str, record: Mapping[str, Any], folder: Path) -> None:
    """Put the record of a curve beside those of the others, and draw peak memory of all."""
    path = folder / "scale.json"
    found = {**(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}), curve: record}
    records = {name: found[name] for name in CURVES if name in found}
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    peaks = {axis: _peaks(records[name]) for name, axis in _PICTURED.items() if name in records}
    panels = [Panel(axis, of_contenders) for axis, of_contenders in peaks.items() if of_contenders]
    if panels:
        picture = lines("Peak memory of one average", "peak memory (MB)", panels)
        (folder / "scale.svg").write_text(picture, encoding="utf-8")


def _peaks(record: Mapping[str, Any]) -> dict[str, dict[float, float]]:
    """Return the medians of peak memory in MB, by contender and place on the axis."""
    found: dict[str, dict[float, list[float]]] = {}
    for sample in record["measurements"]:
        x, contender = sample["x"], sample["contender"]
        if x is not None and contender in _CONTENDERS:
            found.setdefault(contender, {}).setdefault(x, []).append(sample["peak_bytes"] / 1e6)
    return {name: {x: statistics.median(peaks) for x, peaks in line.items()} for name, line in found.items()}


def _row(point: Point, paths: Sequence[Path], settings: Settings) -> tuple[str, ...]:
    series, label, options = point.series, point.label, point.options
    nbytes = series.data_bytes()
    fits = _fits(nbytes, settings)
    if not fits and not _fits(nbytes / 2, settings):
        return f"{label}: the output does not fit on the disk", *[""] * 4 * len(_CONTENDERS)
    if not fits:
        label, options = f"{label}, output in bfloat16", (*options, "--dtype", "bf16")
    is_slow = nbytes * series.checkpoints > _SLOW_BYTES
    files = paths if nbytes * series.checkpoints < _CACHED * _free_memory() else ()
    jobs = {"ema-avg": Job([*point.before, *ours(paths, settings), *options], files)}
    if point.compare and fits and 2.5 * nbytes < _free_memory() / 2:
        jobs["naive"] = Job([*point.before, *naive(paths, settings)], files)
    samples = _at(point.x, label, jobs, settings, rounds=1 if is_slow else 0)
    return label, *(cell for name in _CONTENDERS for cell in _cells(samples.get(name)))


def _at(x: float, label: str, jobs: Mapping[str, Job], settings: Settings, *, rounds: int) -> dict[str, Sample]:
    """Run the jobs in turn; their measurements have a place on the axis of the chart."""
    first = len(settings.samples)
    found = in_turn(label, jobs, settings, rounds=rounds)
    settings.samples[first:] = [{**sample, "x": x} for sample in settings.samples[first:]]
    return found


def _fits(nbytes: float, settings: Settings) -> bool:
    return shutil.disk_usage(settings.scratch).free > 1.05 * nbytes + _SPARE_BYTES


def _free_memory() -> float:
    found = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in found if line.startswith("MemAvailable"))


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
        series = Series(settings.checkpoints, count, max(1, settings.model_bytes // 20 // count))
        yield Point(count, f"{series.checkpoints} x {size(series.data_bytes())} in {count:,} tensors", series)


def _threads(settings: Settings) -> Iterator[Point]:
    cores = sorted(os.sched_getaffinity(0))
    series = Series(settings.checkpoints, 40, settings.model_bytes // 160)
    for some in sorted({1, len(cores)}):
        for threads in sorted({1, 2, 4, 8, len(cores)}):
            if threads <= max(2, some):
                before = ["taskset", "-c", ",".join(map(str, cores[:some]))]
                label = f"{threads} threads on {some} cores, {series.checkpoints} x {size(series.data_bytes())}"
                yield Point(threads, label, series, ("--threads", threads), before, compare=threads == 1)


def _decays(settings: Settings) -> Rows:
    """Compare several decays with one, and with reading the inputs and copying as many outputs."""
    yield (
        *("decays", "checkpoints", "page cache", _COPIES, "ema-avg", f"ema-avg / ({_COPIES})"),
        *("copies / one copy", "ema-avg / one decay"),
        *(f"processor time: {name}" for name in (_COPIES, "ema-avg", "ema-avg / one decay")),
        "peak memory",
    )
    few = Series(settings.checkpoints, 40, settings.model_bytes // 160)
    many = Series(8 * settings.checkpoints, 40, settings.model_bytes // 8 // 160)
    for series in (few, many)[: 1 if settings.small else None]:
        with on_disk(series, settings) as paths:
            for cold in (False, True)[: 1 if settings.small else None]:
                yield from _decays_of(series, paths, settings, cold=cold)


def _decays_of(series: Series, paths: Sequence[Path], settings: Settings, *, cold: bool) -> Rows:
    label, cache = f"{series.checkpoints} x {size(series.data_bytes())}", "cold" if cold else "warm"
    counts = (1, 2, 4, 8)[: 2 if settings.small else None]
    jobs = {}
    for count in counts:
        jobs[f"{count} {_COPIES}"] = Job(cat_and_copies(paths, settings, count), paths, cold)
        jobs[f"{count} ema-avg"] = Job(ours(paths, settings, *_DECAYS[:count]), paths, cold)
    first = len(settings.samples)
    found = in_turn(f"{label}, {cache}", jobs, settings)
    pictured = series.checkpoints == settings.checkpoints and not cold
    for number, sample in enumerate(settings.samples[first:], first):
        count_given, _, contender = sample["contender"].partition(" ")
        place = int(count_given) if pictured else None
        settings.samples[number] = {**sample, "contender": contender, "decays": int(count_given), "x": place}
    for count in counts:
        copied, averaged = found[f"{count} {_COPIES}"], found[f"{count} ema-avg"]
        one_copied, one = found[f"1 {_COPIES}"], found["1 ema-avg"]
        yield (
            *(str(count), label, f"{cache} ({averaged.cached:.0%} cached)"),
            *(f"{copied.seconds:.2f} s", f"{averaged.seconds:.2f} s", f"{averaged.seconds / copied.seconds:.2f}"),
            *(f"{copied.seconds / one_copied.seconds:.2f}", f"{averaged.seconds / one.seconds:.2f}"),
            *(f"{copied.cpu_seconds:.2f} s", f"{averaged.cpu_seconds:.2f} s"),
            *(f"{averaged.cpu_seconds / one.cpu_seconds:.2f}", peak(averaged)),
        )
