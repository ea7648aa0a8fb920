"""Whole processes, measured in turn: time, processor time, peak memory, and what was in the page cache before.

Every number is the median of several rounds. Each command is started by a small parent of its own: a process inherits
the peak memory of its parent, and this process has loaded torch. Before each command the previous output is deleted,
everything is synced, and the inputs are read into the page cache or evicted from it.
"""

import ctypes
import json
import mmap
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_PARENT = """
import os, sys, threading, time
def watch(status, ended):
    global anonymous
    while not ended.wait(0.01):
        with open(status) as file:
            found = [line.split() for line in file if line.startswith("RssAnon")]
        anonymous = max([anonymous, *(int(kib) * 1024 for _, kib, _ in found)])
anonymous, ended = 0, threading.Event()
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
redirect = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
started = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=redirect)
watcher = threading.Thread(target=watch, args=(f"/proc/{pid}/status", ended))
watcher.start()
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
seconds = time.perf_counter() - started
ended.set()
watcher.join()
_, status, used = os.wait4(pid, 0)
code = os.waitstatus_to_exitcode(status)
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, anonymous, code)
"""


class Settings(NamedTuple):
    """What the command line decided."""

    folder: Path
    """Of the checkpoints."""
    scratch: Path
    """Deleted at the end."""
    rounds: int
    model_bytes: int
    """Of one checkpoint."""
    large_bytes: int
    """Of the largest checkpoint in the table of memory."""
    checkpoints: int
    counts: Sequence[int]
    """Checkpoints of the peers, one after the other."""
    many: int
    """Tensors of a checkpoint of many small ones."""
    entries: int
    """Tensors of the file whose structure is read."""
    remote_bytes: int
    objects: int
    """Remote files."""
    keep: bool
    small: bool
    """A run that only shows that everything works."""
    records: Path | None
    """The folder of JSON files and pictures."""
    environment: Path | None
    """The virtual environment of the peers."""
    sources: Mapping[str, Path]
    """Scripts of peers that are in no package."""
    most_bytes: int
    """Of the largest checkpoint of the scale curves."""
    curves: Sequence[str]
    samples: list[dict[str, Any]]
    """Every measurement of the current part, for its JSON file."""

    @property
    def out(self) -> Path:
        """The folder of outputs, which is emptied before each command."""
        return self.scratch / "out"


class Job(NamedTuple):
    """A command, and the files that it reads."""

    command: Sequence[object]
    inputs: Sequence[Path] = ()
    cold: bool = False


class Sample(NamedTuple):
    """What one run of a command took, or the medians of several."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float
    """Resident memory, with the pages of mapped files."""
    anonymous_bytes: float
    """Resident memory without files: the largest of a sample every 10 ms, 0 for commands that are shorter."""
    cached: float
    """Share of the inputs in the page cache at the start."""
    fold_seconds: float = 0.0
    """From the report of ema-avg, as the next."""
    fold_bytes: float = 0.0


Rows = Iterator[tuple[str, ...]]


def in_turn(label: str, jobs: Mapping[str, Job], settings: Settings, *, rounds: int = 0) -> dict[str, Sample]:
    """Run all jobs once per round; return the medians."""
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    for number in range(rounds or settings.rounds):
        for name, job in jobs.items():
            samples[name].append(run(job, settings))
            record(label, name, number, samples[name][-1], settings)
    return {name: medians(taken) for name, taken in samples.items()}


def record(label: str, name: str, number: int, sample: Sample, settings: Settings) -> None:
    """Report a measurement, and keep it for the JSON file."""
    note(f"{label}, round {number + 1}: {name}: {_short(sample)}")
    settings.samples.append({"row": label, "contender": name, "round": number + 1, **sample._asdict()})


def medians(samples: Sequence[Sample]) -> Sample:
    """Return the median of every number."""
    return Sample(*map(statistics.median, zip(*samples, strict=True)))


def run(job: Job, settings: Settings) -> Sample:
    """Run a job once; its output stays in the folder of outputs until the next run."""
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir()
    os.sync()
    for path in job.inputs:
        _set_cache(path, cold=job.cold)
    cached = statistics.fmean([_cached_share(path) for path in job.inputs] or [1])
    log, command = settings.scratch / "log", [str(part) for part in job.command]
    parent = [sys.executable, "-I", "-S", "-c", _PARENT, str(log), *command]
    printed = subprocess.run(parent, env=environment(settings), stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, cpu_seconds, peak_bytes, anonymous_bytes, code = map(float, printed.split())
    if code:
        raise Failed(f"{shlex.join(command)[:500]} ended with {code:.0f}:\n{log.read_text()[-2000:]}")
    sample = Sample(seconds, cpu_seconds, peak_bytes, anonymous_bytes, cached)
    for report in settings.out.glob("*.report.json"):
        summary = json.loads(report.read_text())["summary"]
        return sample._replace(fold_seconds=summary["fold_seconds"], fold_bytes=summary["bytes_read"])
    return sample


class Failed(Exception):  # noqa: N818 - the name reads as what it reports
    """A command ended with an exit code that is not 0."""


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables of a measured command: few, so that no setting of the user has a part in the figures."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {"PATH": os.defpath, **kept, "HOME": str(settings.scratch), "LC_ALL": "C.UTF-8"}


def _set_cache(path: Path, *, cold: bool) -> None:
    """Evict a synced file from the page cache, or read it into it."""
    with path.open("rb", buffering=0) as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass


def _cached_share(path: Path) -> float:
    """Return the share of a file's pages that mincore(2) reports in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        flags = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), flags)
        del start
    return float("nan") if failed else bytes(flags).count(1) / len(flags)


def size(count: float) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def peak(sample: Sample) -> str:
    """Return the peak memory as text."""
    return f"{sample.peak_bytes / 1e6:,.0f} MB"


def _short(sample: Sample) -> str:
    memory = f"{sample.peak_bytes / 1e6:.0f} MB ({sample.anonymous_bytes / 1e6:.0f} anonymous)"
    return f"{sample.seconds:.2f} s, processor {sample.cpu_seconds:.2f} s, {memory}, {sample.cached:.0%} cached"


def note(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)
