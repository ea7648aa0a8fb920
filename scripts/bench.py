"""Measure ema-avg: speed, small tensors, structure, memory, averages in memory, geometry, start-up, remote files.

    python scripts/bench.py --folder /scratch        # 8 x 0.5 GB; needs 10 GB of disk
    python scripts/bench.py --quick --only speed

Every number is the median of several rounds, the contenders taken in turn. Each command is a whole process, started
by a small parent of its own: a process inherits the peak memory of its parent, and this process has loaded torch.
Before each command the previous output is deleted, everything is synced, and the checkpoints are read into the page
cache or evicted from it; the table shows the share that is then really cached.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

_PARENT = """
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
redirect = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
started = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=redirect)
_, status, used = os.wait4(pid, 0)
seconds = time.perf_counter() - started
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))
"""
_NAIVE = """
import os, sys, torch
from safetensors.torch import load_file, save_file
out, first, *rest = sys.argv[1:]
load = load_file if first.endswith(".safetensors") else torch.load
avg = load(first)
for path in rest:
    for k, v in load(path).items():
        avg[k].mul_(0.9).add_(v, alpha=1 - 0.9)
save_file(avg, out)
with open(out, "rb") as file:
    os.fsync(file.fileno())
"""
_STRUCTURE = """
import sys, torch
from safetensors import safe_open
path = sys.argv[1]
if path.endswith(".safetensors"):
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
else:
    loaded = torch.load(path, mmap=path.endswith(".pt"), weights_only=True)
    shapes = {name: tensor.shape for name, tensor in loaded.items()}
"""
_DOWNLOAD = """
import http.client, queue, sys, threading
names = queue.SimpleQueue()
for name in sys.argv[3:]:
    names.put(name)
def work():
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    buffer = bytearray(1 << 20)
    while True:
        try:
            connection.request("GET", "/" + names.get_nowait())
        except queue.Empty:
            return
        answer = connection.getresponse()
        while answer.readinto(buffer):
            pass
threads = [threading.Thread(target=work) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_CONNECTIONS = 12
"""Of the downloads, and of ema-avg."""
_LINKS = {"loopback": (0, 0), "10 ms per request": (0.01, 0), "100 MB/s": (0, 1e8)}
"""Seconds before each answer, and bytes per second; 0 for any number."""
_PROBE_ALONE = """
import sys, time
from ema_cli.evidence.probe import examine_series
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
options = make_options(sys.argv[1:], decay=0.9)
with planned(options) as plan:
    started = time.process_time()
    examine_series(plan, options)
    print(time.process_time() - started)
"""
_STREAMED = """
import sys, ema_cli
for decay in sys.argv[1].split():
    for name, array in ema_cli.average_tensors(sys.argv[3:], decay=float(decay)):
        pass
"""
_USED = """
import glob, sys, ema_cli, torch
from safetensors.torch import load_file
decays, out, *paths = sys.argv[1:]
decays = [float(decay) for decay in decays.split()]
def use(state):
    return [tensor.sum() for tensor in state.values()]  # load_file reads a tensor when it is used
"""
_LOADED = f"""{_USED}
for decay in decays:
    use(ema_cli.load_average(paths, decay=decay))
"""
_THROUGH_FILES = f"""{_USED}
ema_cli.average(paths, decay=decays, output=out + "/ema_{{decay}}.safetensors")
for path in glob.glob(out + "/*.safetensors"):
    use(load_file(path))
"""
_LOOPED = f"""{_USED}
for decay in decays:
    state = load_file(paths[0])
    for path in paths[1:]:
        for k, v in load_file(path).items():
            state[k].mul_(decay).add_(v, alpha=1 - decay)
    use(state)
"""
_COPY = 'cat "$@" > /dev/null && cp "$1" "$0" && sync "$0"'
_EMA_AVG = str(Path(sys.executable).with_name("ema-avg"))


_QUICK_ROWS = {"memory": 3, "startup": 3}
"""Of each table, its head included; 2 of most."""


class _Settings(NamedTuple):
    folder: Path
    out: Path  # emptied before each command
    rounds: int
    model_bytes: int
    large_bytes: int
    checkpoints: int
    many: int
    entries: int
    remote_bytes: int
    objects: int
    keep: bool


class _Series(NamedTuple):
    checkpoints: int
    tensors: int
    elements: int  # of each tensor
    suffix: str = ".safetensors"
    dtype: torch.dtype = torch.float32
    sparse: bool = False  # all zeros that take no room on the disk

    def data_bytes(self) -> int:
        return self.tensors * self.elements * self.dtype.itemsize


class _Job(NamedTuple):
    command: Sequence[object]
    inputs: Sequence[Path] = ()
    cold: bool = False


class _Sample(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_bytes: float
    cached: float  # share of the inputs in the page cache at the start
    fold_seconds: float = 0.0  # from the report of ema-avg
    fold_bytes: float = 0.0


_Rows = Iterator[tuple[str, ...]]


@contextmanager
def _on_disk(series: _Series, settings: _Settings) -> Iterator[list[Path]]:
    """Make the checkpoints, or reuse existing ones; delete new ones unless they are to be kept."""
    name = f"{_name(series.dtype)}-{series.tensors}x{series.elements}{'-sparse' * series.sparse}{series.suffix}"
    folder = settings.folder / name
    folder.mkdir(exist_ok=True)
    paths = [folder / f"step_{i:03}{series.suffix}" for i in range(series.checkpoints)]
    missing = [i for i, path in enumerate(paths) if not (path.exists() and _fits(path.stat().st_size, series))]
    try:
        _make(series, paths, missing)
        yield paths
    finally:
        if not settings.keep:
            for i in missing:
                paths[i].unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _fits(size: int, series: _Series) -> bool:
    return 0 < size - series.data_bytes() < 65_536 + 1024 * series.tensors


def _make(series: _Series, paths: Sequence[Path], missing: Sequence[int]) -> None:
    names = [f"layers.{n}.weight" for n in range(series.tensors)]
    base = torch.randn(0 if series.sparse or not missing else series.tensors, series.elements)
    for i in missing:
        _note(f"making {paths[i]}")
        if series.sparse:
            _write_sparse(paths[i], names, series.elements * 4)
            continue
        state = {name: (row * (1 + 0.001 * i)).to(series.dtype) for name, row in zip(names, base, strict=True)}
        if series.suffix in (".pt", ".pth"):
            torch.save(state, paths[i], _use_new_zipfile_serialization=series.suffix == ".pt")
        else:
            save_file(state, paths[i])


def _write_sparse(path: Path, names: Sequence[str], size: int) -> None:
    places = {name: [n * size, (n + 1) * size] for n, name in enumerate(names)}
    entries = {k: {"dtype": "F32", "shape": [size // 4], "data_offsets": place} for k, place in places.items()}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + len(names) * size)


def _ours(inputs: Sequence[Path], settings: _Settings, *decays: float) -> Sequence[object]:
    out = settings.out / ("out_{decay}.safetensors" if len(decays) > 1 else "out.safetensors")
    return [_EMA_AVG, *inputs, *(part for decay in decays or [0.9] for part in ("--decay", decay)), "-o", out]


def _naive(inputs: Sequence[Path], settings: _Settings) -> Sequence[object]:
    return [sys.executable, "-c", _NAIVE, settings.out / "out.safetensors", *inputs]


def _cat_and_copy(inputs: Sequence[Path], settings: _Settings) -> Sequence[object]:
    return ["sh", "-c", _COPY, settings.out / "copy", *inputs]


def _in_turn(jobs: Mapping[str, _Job], settings: _Settings) -> dict[str, _Sample]:
    """Run all jobs once per round; return the medians."""
    samples: dict[str, list[_Sample]] = {name: [] for name in jobs}
    for number in range(settings.rounds):
        for name, job in jobs.items():
            samples[name].append(_run(job, settings))
            _note(f"round {number + 1}: {name}: {samples[name][-1]}")
    return {name: _Sample(*map(statistics.median, zip(*taken, strict=True))) for name, taken in samples.items()}


def _run(job: _Job, settings: _Settings) -> _Sample:
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir()
    os.sync()
    for path in job.inputs:
        _set_cache(path, cold=job.cold)
    cached = statistics.fmean([_cached_share(path) for path in job.inputs] or [1])
    log, command = settings.out.with_name("log"), [str(part) for part in job.command]
    parent = [sys.executable, "-I", "-S", "-c", _PARENT, str(log), *command]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(settings.folder), "LC_ALL": "C.UTF-8"}
    printed = subprocess.run(parent, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, cpu_seconds, peak_bytes, code = map(float, printed.split())
    if code:
        raise SystemExit(f"{shlex.join(command)[:500]} ended with {code:.0f}:\n{log.read_text()[-2000:]}")
    for report in settings.out.glob("*.report.json"):
        summary = json.loads(report.read_text())["summary"]
        return _Sample(seconds, cpu_seconds, peak_bytes, cached, summary["fold_seconds"], summary["bytes_read"])
    return _Sample(seconds, cpu_seconds, peak_bytes, cached)


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


# The parts: each yields the rows of its table, the header first.


def _speed(settings: _Settings) -> _Rows:
    """Compare with reading and copying the same bytes, and with the loop everybody writes."""
    yield (
        *("checkpoints", "page cache", "cat + copy", "ema-avg", "naive loop", "naive / ema-avg"),
        *("ema-avg / (cat + copy)", "fold", "fold / (cat + copy)", "peak memory: ema-avg", "naive"),
    )
    for dtype in (torch.float32, torch.bfloat16):
        for suffix in (".safetensors", ".pt"):
            elements = settings.model_bytes // dtype.itemsize // 40
            series = _Series(settings.checkpoints, 40, elements, suffix, dtype)
            with _on_disk(series, settings) as paths:
                for cold in (False, True):
                    yield _speed_row(series, paths, settings, cold=cold)


def _speed_row(series: _Series, paths: Sequence[Path], settings: _Settings, *, cold: bool) -> tuple[str, ...]:
    commands = {"cat + copy": _cat_and_copy, "ema-avg": _ours, "naive": _naive}
    jobs = {name: _Job(make(paths, settings), paths, cold) for name, make in commands.items()}
    copied, averaged, looped = _in_turn(jobs, settings).values()
    fold_speed = averaged.fold_bytes / averaged.fold_seconds
    copy_speed = series.checkpoints * series.data_bytes() / copied.seconds
    return (
        f"{series.checkpoints} x {_size(series.data_bytes())} {_name(series.dtype)} `{series.suffix}`",
        f"{'cold' if cold else 'warm'} ({averaged.cached:.0%} cached)",
        *(f"{sample.seconds:.2f} s" for sample in (copied, averaged, looped)),
        *(f"{looped.seconds / averaged.seconds:.1f}", f"{averaged.seconds / copied.seconds:.2f}"),
        *(f"{fold_speed / 1e9:.2f} GB/s", f"{fold_speed / copy_speed:.2f}", _peak(averaged), _peak(looped)),
    )


def _tensors(settings: _Settings) -> _Rows:
    """Compare many small tensors with one large one of the same bytes."""
    many, elements = settings.many, settings.model_bytes // 4 // settings.many
    yield "checkpoints, warm", "1 tensor", f"{many:,} tensors", "ratio", "fold: 1", f"fold: {many:,}", "ratio"
    for suffix in (".safetensors", ".pt"):
        one = _Series(settings.checkpoints, 1, elements * many, suffix)
        with (
            _on_disk(one, settings) as large,
            _on_disk(one._replace(tensors=many, elements=elements), settings) as small,
        ):
            jobs = {"1 tensor": _Job(_ours(large, settings), large), "many": _Job(_ours(small, settings), small)}
            a, b = _in_turn(jobs, settings).values()
        yield (
            f"{one.checkpoints} x {_size(one.data_bytes())} float32 `{suffix}`",
            *(f"{a.seconds:.2f} s", f"{b.seconds:.2f} s", f"{b.seconds / a.seconds:.2f}"),
            *(f"{a.fold_seconds:.2f} s", f"{b.fold_seconds:.2f} s", f"{b.fold_seconds / a.fold_seconds:.2f}"),
        )


def _structure(settings: _Settings) -> _Rows:
    """Compare with the libraries' reading of a file with very many tensors: names and shapes, no numbers."""
    yield f"CPU time for {settings.entries:,} tensors", "`ema-avg inspect`", "the library", "ratio", "peak", "library"
    libraries = {".safetensors": "safe_open", ".pt": "torch.load, mapped", ".pth": "torch.load, before torch 1.6"}
    for suffix, library in libraries.items():
        with _on_disk(_Series(1, settings.entries, 4, suffix), settings) as paths:
            read = [sys.executable, "-c", _STRUCTURE, *paths]
            jobs = {"ours": _Job([_EMA_AVG, "inspect", *paths], paths), library: _Job(read, paths)}
            ours, theirs = _in_turn(jobs, settings).values()
        yield (
            f"`{suffix}` ({library})",
            *(f"{ours.cpu_seconds:.1f} s", f"{theirs.cpu_seconds:.1f} s"),
            *(f"{ours.cpu_seconds / theirs.cpu_seconds:.2f}", _peak(ours), _peak(theirs)),
        )


def _memory(settings: _Settings) -> _Rows:
    """Measure peak resident memory; large models are sparse files of zeros, which changes no buffer."""
    yield "peak resident memory", "ema-avg", "naive loop"
    least = _in_turn({"true": _Job(["true"])}, settings)["true"]
    yield f"(the least that this can measure: `true` has {_peak(least)})", "", ""
    model, large, many = settings.model_bytes, settings.large_bytes, f"64 x {settings.many:,} small tensors"
    pair = _Series(2, 40, model // 160, sparse=True)
    small = _Series(64, settings.many, 256)
    for label, series, compare, decays in (
        (f"2 x {_size(model)} `.safetensors`", pair, True, [0.9]),
        (f"64 x {_size(model)} `.safetensors`", pair._replace(checkpoints=64), False, [0.9]),
        (f"2 x {_size(large)} `.safetensors`", pair._replace(elements=large // 160), False, [0.9]),
        (f"2 x {_size(model)} `.safetensors`, 4 decays in one pass", pair, False, [0.8, 0.9, 0.99, 0.999]),
        (f"2 x {_size(model)} `.pt`", pair._replace(suffix=".pt", sparse=False), True, [0.9]),
        (f"{many} `.safetensors`", small, True, [0.9]),
        (f"{many} `.pt`", small._replace(suffix=".pt"), True, [0.9]),
    ):
        with _on_disk(series, settings) as paths:
            jobs = {label: _Job(_ours(paths, settings, *decays))}
            if compare:
                jobs["naive"] = _Job(_naive(paths, settings))
            peaks = [_peak(sample) for sample in _in_turn(jobs, settings).values()]
        yield label, *peaks, *([] if compare else [""])


def _in_memory(settings: _Settings) -> _Rows:
    """Compare averages in memory with averages that are written and loaded, and with the loop everybody writes."""
    yield "in memory, warm", "averages", "time", "CPU time", "peak memory"
    ways = {
        "`average_tensors` (numpy)": _STREAMED,
        "`load_average` in a loop": _LOADED,
        "`average` to files (one read), `load_file`": _THROUGH_FILES,
        "naive loop with torch": _LOOPED,
    }
    series = _Series(settings.checkpoints, 40, settings.model_bytes // 4 // 40)
    with _on_disk(series, settings) as paths:
        for decays in ("0.9", "0.5 0.8 0.9"):
            jobs = {
                way: _Job([sys.executable, "-W", "ignore", "-c", code, decays, settings.out, *paths], paths)
                for way, code in ways.items()
            }
            for way, sample in _in_turn(jobs, settings).items():
                figures = f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s", _peak(sample)
                yield way, str(len(decays.split())), *figures


def _geometry(settings: _Settings) -> _Rows:
    """Measure the cost of the report's geometry during the fold."""
    yield "checkpoints, warm", "fold: none", "fold: sample", "cost"
    elements = settings.model_bytes // 4 // 40
    some = _Series(settings.checkpoints, 40, elements)
    for series in (
        some,
        some._replace(dtype=torch.bfloat16, elements=elements * 2),
        some._replace(tensors=settings.many, elements=settings.model_bytes // 4 // settings.many),
    ):
        with _on_disk(series, settings) as paths:
            jobs = {mode: _Job([*_ours(paths, settings), "--geometry", mode], paths) for mode in ("none", "sample")}
            none, sample = (found.fold_seconds for found in _in_turn(jobs, settings).values())
        yield (
            f"{series.checkpoints} x {_size(series.data_bytes())} {_name(series.dtype)}, {series.tensors:,} tensors",
            *(f"{none:.3f} s", f"{sample:.3f} s", f"{sample / none - 1:+.1%}"),
        )


def _probe(settings: _Settings) -> _Rows:
    """Measure the cost of the sample before the fold, in CPU time, without the import of numpy, which a run needs."""
    yield "checkpoints, warm", "probe, in process", "the whole run", "probe / run"
    elements = settings.model_bytes // 4 // 40
    for series in (_Series(settings.checkpoints, 40, elements), _Series(64, 20, 6400)):
        with _on_disk(series, settings) as paths:
            run = _in_turn({"run": _Job(_ours(paths, settings), paths)}, settings)["run"]
            probe = [sys.executable, "-c", _PROBE_ALONE, *map(str, paths)]
            seconds = statistics.median(float(subprocess.check_output(probe)) for _ in range(settings.rounds))
        yield (
            f"{series.checkpoints} x {_size(series.data_bytes())} `.safetensors`",
            *(f"{seconds:.3f} s", f"{run.cpu_seconds:.2f} s", f"{seconds / run.cpu_seconds:.1%}"),
        )


def _startup(settings: _Settings) -> _Rows:
    """Measure the cost of a run with almost no work."""
    ten, fifty = _Series(10, 20, 12_500), _Series(50, 20, 100)
    pickled = ten._replace(suffix=".pt")
    with _on_disk(ten, settings) as st, _on_disk(pickled, settings) as pt, _on_disk(fifty, settings) as small:
        jobs = {
            "the bare interpreter: `python -c pass`": _Job([sys.executable, "-c", "pass"]),
            "`ema-avg --help`": _Job([_EMA_AVG, "--help"]),
            "`ema-avg plan`, 50 small `.safetensors`": _Job([_EMA_AVG, "plan", *small, "--decay", 0.9]),
            "`ema-avg`, 10 x 1 MB `.safetensors`": _Job(_ours(st, settings)),
            "`ema-avg`, 10 x 1 MB `.pt`": _Job(_ours(pt, settings)),
            "naive loop, 10 x 1 MB `.pt`": _Job(_naive(pt, settings)),
        }
        yield "command", "CPU time", "wall time"
        for name, sample in _in_turn(jobs, settings).items():
            yield name, f"{sample.cpu_seconds:.3f} s", f"{sample.seconds:.3f} s"


class _Server(NamedTuple):
    """A web server on the loopback, in a process of its own."""

    port: int
    log: Path

    def sent(self) -> tuple[int, int]:
        """Return the number of requests since the last call, without plain downloads, and the bytes of parts."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        os.truncate(self.log, 0)
        asked = [int(size) for method, size, kind in lines if method == "HEAD" or kind == "part"]
        return len(asked), sum(asked)


@contextmanager
def _served(folder: Path, delay: float, rate: float) -> Iterator[_Server]:
    log = folder / "requests"
    command = [sys.executable, "-m", "tests.helpers.range_server", str(folder.resolve()), str(log.resolve())]
    command += [str(delay), str(rate)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _Server(int(process.stdout.readline()), log)
        finally:
            process.stdin.close()
            process.wait()
            log.unlink()


def _remote(settings: _Settings) -> _Rows:
    """Read from a web server on the loopback: requests, bytes, time against plain downloads, memory against files."""
    yield (
        *("checkpoints on a web server, warm", "link", "plan: requests", "sent", "run: requests", "sent / needed"),
        *("parallel downloads", "ema-avg, remote", "ratio", "CPU: downloads", "remote", "local"),
        *("peak memory: remote", "local"),
    )
    large = _Series(max(2, settings.objects // 25), 40, settings.remote_bytes // 160)
    small = _Series(settings.objects, 10, 50_000)
    for series in (large, large._replace(suffix=".pt"), small, small._replace(suffix=".pt")):
        with _on_disk(series, settings) as paths:
            for link, (delay, rate) in _LINKS.items():
                with _served(paths[0].parent, delay, rate) as server:
                    first, *rest = _remote_row(series, paths, server, settings)
                yield first, link, *rest


def _remote_row(series: _Series, paths: Sequence[Path], server: _Server, settings: _Settings) -> tuple[str, ...]:
    urls = [f"http://127.0.0.1:{server.port}/{path.name}" for path in paths]
    _run(_Job([_EMA_AVG, "plan", *urls, "--decay", 0.9], paths), settings)
    planned, planned_bytes = server.sent()
    remote: Sequence[object] = [_EMA_AVG, *urls, "--decay", 0.9, "-o", settings.out / "out.safetensors"]
    names = [path.name for path in paths]
    jobs = {
        "downloads": _Job([sys.executable, "-c", _DOWNLOAD, server.port, _CONNECTIONS, *names], paths),
        "remote": _Job(remote, paths),
        "local": _Job(_ours(paths, settings), paths),
    }
    downloads, far, near = _in_turn(jobs, settings).values()
    made, sent = (count / settings.rounds for count in server.sent())
    return (
        f"{series.checkpoints} x {_size(series.data_bytes())} `{series.suffix}`",
        *(f"{planned:,}", _size(planned_bytes), f"{made:,.0f}"),
        f"{sent / (series.checkpoints * series.data_bytes()):.3f}",
        *(f"{downloads.seconds:.2f} s", f"{far.seconds:.2f} s", f"{far.seconds / downloads.seconds:.2f}"),
        *(f"{sample.cpu_seconds:.2f} s" for sample in (downloads, far, near)),
        *(_peak(far), _peak(near)),
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _peak(sample: _Sample) -> str:
    return f"{sample.peak_bytes / 1e6:,.0f} MB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _machine(folder: Path) -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    disk = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=True).stdout.split()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{len(os.sched_getaffinity(0))} cores, {ram:.0f} GiB, Linux {platform.release()}, {disk[-1]}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model[1] if model else platform.machine()}, {system}; {versions}"


def _main() -> None:
    parts = {
        "speed": _speed,
        "tensors": _tensors,
        "structure": _structure,
        "memory": _memory,
        "in-memory": _in_memory,
        "geometry": _geometry,
        "probe": _probe,
        "startup": _startup,
        "remote": _remote,
    }
    parser = argparse.ArgumentParser(description="Measure ema-avg.")
    parser.add_argument("--folder", type=Path, help="for the checkpoints, on the disk to measure [a temporary folder]")
    parser.add_argument("--rounds", type=int, help="runs of each command [5]")
    parser.add_argument("--size", type=float, help="MB per checkpoint [512]")
    parser.add_argument("--checkpoints", type=int, help="of the timed runs [8]")
    parser.add_argument("--only", choices=parts, action="append", help="run only this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that everything works")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints in --folder for the next run")
    given = parser.parse_args()
    quick, full = (2, 16, 4, 300, 2000, 64, 16, 12), (5, 512, 8, 3000, 100_000, 4000, 120, 500)
    rounds, size, checkpoints, many, entries, large, remote, objects = quick if given.quick else full
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ema-avg-bench-", dir=given.folder))
    settings = _Settings(
        folder=(given.folder or scratch).absolute(),
        out=scratch.absolute() / "out",
        rounds=given.rounds or rounds,
        model_bytes=int((given.size or size) * 1e6),
        large_bytes=int(large * 1e6),
        checkpoints=given.checkpoints or checkpoints,
        many=many,
        entries=entries,
        remote_bytes=int((given.size or remote) * 1e6),
        objects=objects,
        keep=given.keep,
    )
    try:
        print(f"{_machine(scratch)}\n`python {shlex.join(sys.argv)}`, medians of {settings.rounds} rounds", flush=True)
        for name in given.only or parts:
            shown = islice(parts[name](settings), _QUICK_ROWS.get(name, 2) if given.quick else None)
            for number, row in enumerate(shown):
                print("\n" * (number == 0) + f"| {' | '.join(row)} |", flush=True)
                if number == 0:
                    print(f"| --- |{' ---: |' * (len(row) - 1)}", flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    _main()
