"""What a plan costs: processor time, memory and system calls against files, tensors and checkpoints."""

import re
import shutil
import subprocess
from collections.abc import Sequence

from .commands import DECAY, EMA_AVG
from .folders import Folders, folders_on_disk
from .measure import Job, Rows, Settings, environment, in_turn, peak

CALLS = {
    "opens": ("open", "openat"),
    "stats": ("stat", "lstat", "fstat", "newfstatat", "statx"),
    "reads": ("read", "pread64", "preadv", "preadv2"),
    "writes": ("write", "pwrite64", "pwritev", "sendto"),
}
"""Kinds of system calls."""
_COUNTED = ("opens", "stats", "reads")
_POINTS = (
    Folders("shards", 1, 16, 1000),
    Folders("shards", 50, 16, 1000),
    Folders("shards", 50, 512, 1000),
    Folders("shards", 50, 16, 20_000),
    Folders("shards", 50, 512, 20_000),
    Folders("DCP", 2, 8, 20),
    Folders("DCP", 2, 512, 20),
    Folders("DCP", 10, 512, 20),
    Folders("DCP", 2, 64, 320),
)
_SMALL = (Folders("shards", 2, 2, 20), Folders("DCP", 2, 2, 3))


def planning(settings: Settings) -> Rows:
    """Measure ``ema-avg plan``: the start of Python, the structures, and the sample of the weights."""
    yield (
        *("a plan of", "files", "tensors", "pieces of a checkpoint", "processor time", "time", "peak memory"),
        *(f"{name} per file" for name in _COUNTED),
    )
    for some in _SMALL if settings.small else _POINTS:
        with folders_on_disk(some, settings) as run:
            command = [EMA_AVG, "plan", run, "--decay", DECAY, "-o", f"{settings.out}/ema/"]
            sample = in_turn(str(some), {"plan": Job(command)}, settings)["plan"]
            calls = _system_calls(command, settings)
        files = some.checkpoints * some.files
        yield (
            *(f"{some.checkpoints} x {some.kind}", f"{files:,}", f"{some.tensors:,}", f"{some.pieces:,}"),
            *(f"{sample.cpu_seconds:.2f} s", f"{sample.seconds:.2f} s", peak(sample)),
            *(f"{calls[name] / files:.1f}" if calls else "-" for name in _COUNTED),
        )


def _system_calls(command: Sequence[object], settings: Settings) -> dict[str, int]:
    """Count the calls of a command with strace; nothing without it."""
    if shutil.which("strace") is None:
        return {}
    log = settings.scratch / "calls"
    traced = ["strace", "-f", "-c", "-o", log, *command]
    subprocess.run([str(part) for part in traced], env=environment(settings), stdout=subprocess.DEVNULL, check=True)
    return count_calls(log.read_text())


def count_calls(summary: str) -> dict[str, int]:
    """Return the numbers of calls in a summary of strace, by kind."""
    lines = re.findall(r"^ +[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", summary, re.MULTILINE)
    counts = {name: int(count) for count, name in lines}
    return {kind: sum(counts.get(name, 0) for name in names) for kind, names in CALLS.items()}
