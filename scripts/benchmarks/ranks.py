"""One run in several processes under torchrun, against the run of one process: shares, overhead, system calls."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import rmtree, which
from typing import NamedTuple

import torch

from .commands import DECAY, EMA_AVG
from .measure import Job, Rows, Sample, Settings, environment, medians, record, run, size
from .planning import count_calls
from .series import Series, dtype_name, on_disk

_COUNTS = (1, 2, 4)
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
_MEASURED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("measured_rank.py")))
_LISTENS = "--local-addr=127.0.0.1"


class Rank(NamedTuple):
    """What one rank took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float
    read_bytes: float
    written_bytes: float


def ranks(settings: Settings) -> Rows:
    """Measure one process, and 1, 2 and 4 ranks, for a file and a folder of shards; then what a start costs."""
    yield (
        *("checkpoints, warm", "output", "processes", "time", "processor time", "of it per rank", "time of a rank"),
        *("read per rank", "written per rank", "peak memory per rank"),
        *(f"{name} per rank" for name in ("opens", "stats", "reads", "writes")),
    )
    elements = settings.model_bytes // 2 // torch.bfloat16.itemsize // 40
    for series in (Series(settings.checkpoints, 40, elements, dtype=torch.bfloat16), Series(10, 20, 12_500)):
        with on_disk(series, settings) as paths:
            for output, options in (("a file", ()), ("shards", ("--max-shard-size", f"{settings.model_bytes // 20}B"))):
                yield from _compared(series, output, options, paths, settings)
    yield from _starts(settings)


def _compared(
    series: Series, output: str, options: Sequence[str], paths: Sequence[Path], settings: Settings
) -> Iterator[tuple[str, ...]]:
    label = f"{series.checkpoints} x {size(series.data_bytes())} {dtype_name(series.dtype)}"
    name = "out" if output == "shards" else "out.safetensors"
    command = [EMA_AVG, *paths, "--decay", DECAY, *options, "-o", f"{settings.out}/{name}{'/' * (output == 'shards')}"]
    contenders: dict[str, Sequence[object]] = {"no torchrun": ()}
    contenders |= {f"torchrun, {count}": _launcher(count) for count in _COUNTS}
    taken: dict[str, list[tuple[Sample, list[Rank]]]] = {contender: [] for contender in contenders}
    for number in range(settings.rounds):
        for contender, launcher in contenders.items():
            folder = _empty(settings.scratch / "ranks")
            sample = run(Job([*launcher, *_MEASURED, folder, *command], paths), settings)
            found = [Rank(**json.loads(path.read_text())) for path in sorted(folder.iterdir())]
            record(f"{label}, {output}", contender, number, sample, settings)
            settings.samples[-1]["ranks"] = [rank._asdict() for rank in found]
            taken[contender].append((sample, found))
    for contender, rounds in taken.items():
        sample = medians([one for one, _ in rounds])
        calls = _calls([*contenders[contender]], command, settings)
        yield (
            *(label, output, contender, f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s"),
            *_of_ranks([found for _, found in rounds]),
            *(_range([each[kind] for each in calls], "{:,.0f}") for kind in ("opens", "stats", "reads", "writes")),
        )


def _launcher(count: int) -> Sequence[object]:
    return [*_TORCHRUN, _LISTENS, "--nproc-per-node", count, "--no-python"]


def _of_ranks(rounds: Sequence[Sequence[Rank]]) -> tuple[str, ...]:
    """Return the least and the largest numbers of the ranks, each the median of the rounds."""
    typical = [Rank(*map(statistics.median, zip(*found, strict=True))) for found in zip(*rounds, strict=True)]
    return (
        _range([rank.cpu_seconds for rank in typical], "{:.2f} s"),
        _range([rank.seconds for rank in typical], "{:.2f} s"),
        _range([rank.read_bytes / 1e6 for rank in typical], "{:,.0f} MB"),
        _range([rank.written_bytes / 1e6 for rank in typical], "{:,.0f} MB"),
        _range([rank.peak_bytes / 1e6 for rank in typical], "{:,.0f} MB"),
    )


def _range(numbers: Sequence[float], form: str) -> str:
    if not numbers:
        return "-"
    texts = [form.format(number) for number in (min(numbers), max(numbers))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def _calls(launcher: Sequence[object], command: Sequence[object], settings: Settings) -> list[Mapping[str, int]]:
    """Count the system calls of each rank with strace; nothing without it."""
    if which("strace") is None:
        return []
    folder = _empty(settings.scratch / "rank-calls")
    rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir()
    traced = ["sh", "-c", f'exec strace -f -c -o "{folder}/${{RANK:-0}}" "$@"', "sh", *command]
    line = [str(part) for part in [*launcher, *traced]]
    subprocess.run(line, env=environment(settings), check=True, capture_output=True)
    return [count_calls(path.read_text()) for path in sorted(folder.iterdir())]


def _empty(folder: Path) -> Path:
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _starts(settings: Settings) -> Iterator[tuple[str, ...]]:
    """Measure what torchrun and torch take before ema-avg begins."""
    jobs: dict[str, Sequence[object]] = {
        "`python -c 'import torch.distributed'`": [sys.executable, "-c", "import torch.distributed"],
        **{f"torchrun, {count} x `true`": [*_launcher(count), "true"] for count in _COUNTS},
    }
    for label, command in jobs.items():
        sample = medians([run(Job(command), settings) for _ in range(settings.rounds)])
        yield label, "", "", f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s", *[""] * 9
