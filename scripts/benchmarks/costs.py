"""What single steps cost: reading structures, distances, the sample before the fold, and starting."""

import statistics
import subprocess
import sys

import torch

from .commands import DECAY, EMA_AVG, naive, ours
from .measure import Job, Rows, Settings, environment, in_turn, peak, size
from .series import Series, dtype_name, on_disk

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


def structure(settings: Settings) -> Rows:
    """Compare with the libraries' reading of a file with very many tensors: names and shapes, no numbers."""
    yield f"CPU time for {settings.entries:,} tensors", "`ema-avg inspect`", "the library", "ratio", "peak", "library"
    libraries = {".safetensors": "safe_open", ".pt": "torch.load, mapped", ".pth": "torch.load, before torch 1.6"}
    for suffix, library in libraries.items():
        label = f"`{suffix}` ({library})"
        with on_disk(Series(1, settings.entries, 4, suffix), settings) as paths:
            read = [sys.executable, "-c", _STRUCTURE, *paths]
            jobs = {"ours": Job([EMA_AVG, "inspect", *paths], paths), library: Job(read, paths)}
            mine, theirs = in_turn(label, jobs, settings).values()
        yield (
            label,
            *(f"{mine.cpu_seconds:.1f} s", f"{theirs.cpu_seconds:.1f} s"),
            *(f"{mine.cpu_seconds / theirs.cpu_seconds:.2f}", peak(mine), peak(theirs)),
        )


def geometry(settings: Settings) -> Rows:
    """Measure the cost of the report's geometry during the fold."""
    yield "checkpoints, warm", "fold: none", "fold: sample", "cost"
    elements = settings.model_bytes // 4 // 40
    some = Series(settings.checkpoints, 40, elements)
    for series in (
        some,
        some._replace(dtype=torch.bfloat16, elements=elements * 2),
        some._replace(tensors=settings.many, elements=settings.model_bytes // 4 // settings.many),
    ):
        label = (
            f"{series.checkpoints} x {size(series.data_bytes())} {dtype_name(series.dtype)}, {series.tensors:,} tensors"
        )
        with on_disk(series, settings) as paths:
            jobs = {mode: Job([*ours(paths, settings), "--geometry", mode], paths) for mode in ("none", "sample")}
            none, sample = (found.fold_seconds for found in in_turn(label, jobs, settings).values())
        yield (
            label,
            *(f"{none:.3f} s", f"{sample:.3f} s", f"{sample / none - 1:+.1%}"),
        )


def probe(settings: Settings) -> Rows:
    """Measure the cost of the sample before the fold, in CPU time, without the import of numpy, which a run needs."""
    yield "checkpoints, warm", "probe, in process", "the whole run", "probe / run"
    elements = settings.model_bytes // 4 // 40
    for series in (Series(settings.checkpoints, 40, elements), Series(64, 20, 6400)):
        label = f"{series.checkpoints} x {size(series.data_bytes())} `.safetensors`"
        with on_disk(series, settings) as paths:
            run = in_turn(label, {"run": Job(ours(paths, settings), paths)}, settings)["run"]
            probe = [sys.executable, "-c", _PROBE_ALONE, *map(str, paths)]
            seconds = statistics.median(
                float(subprocess.check_output(probe, env=environment(settings))) for _ in range(settings.rounds)
            )
        yield (
            label,
            *(f"{seconds:.3f} s", f"{run.cpu_seconds:.2f} s", f"{seconds / run.cpu_seconds:.1%}"),
        )


def startup(settings: Settings) -> Rows:
    """Measure the cost of a run with almost no work."""
    ten, fifty = Series(10, 20, 12_500), Series(50, 20, 100)
    pickled = ten._replace(suffix=".pt")
    with on_disk(ten, settings) as st, on_disk(pickled, settings) as pt, on_disk(fifty, settings) as small:
        jobs = {
            "the bare interpreter: `python -c pass`": Job([sys.executable, "-c", "pass"]),
            "`ema-avg --help`": Job([EMA_AVG, "--help"]),
            "`ema-avg plan`, 50 small `.safetensors`": Job([EMA_AVG, "plan", *small, "--decay", DECAY]),
            "`ema-avg`, 10 x 1 MB `.safetensors`": Job(ours(st, settings)),
            "`ema-avg`, 10 x 1 MB `.pt`": Job(ours(pt, settings)),
            "naive loop, 10 x 1 MB `.pt`": Job(naive(pt, settings)),
        }
        yield "command", "CPU time", "wall time"
        for name, sample in in_turn("start-up", jobs, settings).items():
            yield name, f"{sample.cpu_seconds:.3f} s", f"{sample.seconds:.3f} s"
