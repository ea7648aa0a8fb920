"""What a calculation for larger models needs: costs per byte and per tensor, from differences of runs."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from zlib_ng import zlib_ng

from .commands import DECAY, EMA_AVG
from .measure import Job, Rows, Sample, Settings, medians, run
from .series import Series, on_disk

_BLOCK_BYTES = 1 << 20


def units(settings: Settings) -> Rows:
    """Measure the fold per byte read and written, checksums, and what a tensor adds to time, memory and report."""
    yield "unit", "figure", "from"
    yield from _of_bytes(settings)
    for name, checksum in (("SHA-256 (hashlib)", hashlib.sha256), ("CRC-32 (zlib-ng)", zlib_ng.crc32)):
        yield f"processor time per GB: {name}", f"{_seconds_per_gb(checksum):.2f} s", "blocks of 1 MiB in memory"
    yield from _of_tensors(settings)


def _of_bytes(settings: Settings) -> Rows:
    elements = settings.model_bytes // 2 // torch.bfloat16.itemsize // 40
    count = settings.checkpoints
    full = Series(count, 40, elements, dtype=torch.bfloat16)
    with on_disk(full, settings) as paths:
        taken = {len(some): _averaged(some, settings) for some in (paths[: count // 2], paths)}
        label = f"{count // 2} and {count} checkpoints of {full.data_bytes() / 1e9:.2f} GB, bfloat16, warm"
    gb = full.data_bytes() / 1e9
    per_read = (taken[count].cpu_seconds - taken[count // 2].cpu_seconds) / (gb * (count - count // 2))
    with on_disk(Series(count, 40, 16, dtype=torch.bfloat16), settings) as paths:
        bare = _averaged(paths, settings)
    per_written = (taken[count].cpu_seconds - bare.cpu_seconds) / gb - per_read * count
    yield "processor time per GB read", f"{per_read:.2f} s", label
    yield (
        "processor time per GB written",
        f"{per_written:.2f} s",
        f"the same, without the {bare.cpu_seconds:.2f} s of a run of 1 kB",
    )


def _averaged(paths: Sequence[Path], settings: Settings) -> Sample:
    command = [EMA_AVG, *paths, "--decay", DECAY, "-o", settings.out / "out.safetensors"]
    return medians([run(Job(command, paths), settings) for _ in range(settings.rounds)])


def _seconds_per_gb(checksum: Callable[[bytes], object]) -> float:
    block, count = bytes(range(256)) * (_BLOCK_BYTES // 256), 256
    started = time.process_time()
    for _ in range(count):
        checksum(block)
    return (time.process_time() - started) / (count * _BLOCK_BYTES) * 1e9


def _of_tensors(settings: Settings) -> Rows:
    found = {}
    few, many = (settings.many // 4, settings.many * 4)
    for tensors in (few, many):
        with on_disk(Series(settings.checkpoints, tensors, 64, dtype=torch.bfloat16), settings) as paths:
            sample = _averaged(paths, settings)
            sizes = [(settings.out / name).stat().st_size for name in ("out.report.json", "out.safetensors")]
            found[tensors] = (sample, sizes[0], sizes[1] - tensors * 128)
    (first, report, header), (second, longer, larger) = found[few], found[many]
    label, difference = f"{settings.checkpoints} checkpoints of {few:,} and {many:,} tensors", many - few
    cpu = (second.cpu_seconds - first.cpu_seconds) / difference / settings.checkpoints * 1e6
    yield "processor time per tensor and checkpoint", f"{cpu:.1f} us", label
    yield "memory per tensor", f"{(second.peak_bytes - first.peak_bytes) / difference:,.0f} bytes", label
    yield "report per tensor", f"{(longer - report) / difference:,.0f} bytes", label
    yield "header per tensor", f"{(larger - header) / difference:,.0f} bytes", label
