"""Time against the naive loop and against reading and copying the same bytes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from .commands import cat_and_copy, naive, ours, ours_read_back
from .measure import Job, Rows, Settings, in_turn, peak, size
from .series import Series, dtype_name, on_disk


def speed(settings: Settings) -> Rows:
    """Compare with reading and copying the same bytes, and with the loop everybody writes."""
    yield (
        *("checkpoints", "page cache", "cat + copy + sync", "ema-avg", "output read back whole", "naive loop"),
        *("naive / ema-avg", "naive / whole", "ema-avg / (cat + copy + sync)", "whole / (cat + copy + sync)"),
        *("processor time: ema-avg", "whole", "naive", "fold", "peak memory: ema-avg", "naive"),
    )
    for dtype in (torch.float32, torch.bfloat16):
        for suffix in (".safetensors", ".pt"):
            elements = settings.model_bytes // dtype.itemsize // 40
            series = Series(settings.checkpoints, 40, elements, suffix, dtype)
            with on_disk(series, settings) as paths:
                for cold in (False, True):
                    yield _speed_row(series, paths, settings, cold=cold)


def _speed_row(series: Series, paths: Sequence[Path], settings: Settings, *, cold: bool) -> tuple[str, ...]:
    commands = {"cat + copy + sync": cat_and_copy, "ema-avg": ours, "whole": ours_read_back, "naive": naive}
    jobs = {name: Job(make(paths, settings), paths, cold) for name, make in commands.items()}
    label = f"{series.checkpoints} x {size(series.data_bytes())} {dtype_name(series.dtype)} `{series.suffix}`"
    taken = in_turn(f"{label}, {'cold' if cold else 'warm'}", jobs, settings)
    copied, averaged, whole, looped = taken.values()
    return (
        *(label, f"{'cold' if cold else 'warm'} ({averaged.cached:.0%} cached)"),
        *(f"{sample.seconds:.2f} s" for sample in taken.values()),
        *(f"{looped.seconds / ours.seconds:.1f}" for ours in (averaged, whole)),
        *(f"{ours.seconds / copied.seconds:.2f}" for ours in (averaged, whole)),
        *(f"{sample.cpu_seconds:.2f} s" for sample in (averaged, whole, looped)),
        *(f"{averaged.fold_bytes / averaged.fold_seconds / 1e9:.2f} GB/s", peak(averaged), peak(looped)),
    )


def quick(settings: Settings) -> Rows:
    """Print the ratios of a small run, for the log of every change."""
    yield (
        *("a quick run, warm", "naive / ema-avg", "of processor time", "ema-avg / (cat + copy + sync)"),
        *("processor time: ema-avg", "peak memory: ema-avg", "naive"),
    )
    commands = {"cat + copy + sync": cat_and_copy, "ema-avg": ours, "naive": naive}
    some = Series(4, 40, 400_000)
    for series in (some, some._replace(dtype=torch.bfloat16, elements=800_000), Series(10, 20, 12_500)):
        label = f"{series.checkpoints} x {size(series.data_bytes())} {dtype_name(series.dtype)}"
        with on_disk(series, settings) as paths:
            jobs = {name: Job(make(paths, settings), paths) for name, make in commands.items()}
            copied, averaged, looped = in_turn(label, jobs, settings, rounds=1).values()
        yield (
            *(label, f"{looped.seconds / averaged.seconds:.1f}", f"{looped.cpu_seconds / averaged.cpu_seconds:.1f}"),
            *(f"{averaged.seconds / copied.seconds:.1f}", f"{averaged.cpu_seconds:.2f} s"),
            *(peak(averaged), peak(looped)),
        )


def tensors(settings: Settings) -> Rows:
    """Compare many small tensors with one large one of the same bytes."""
    many, elements = settings.many, settings.model_bytes // 4 // settings.many
    yield "checkpoints, warm", "1 tensor", f"{many:,} tensors", "ratio", "fold: 1", f"fold: {many:,}", "ratio"
    for suffix in (".safetensors", ".pt"):
        one = Series(settings.checkpoints, 1, elements * many, suffix)
        label = f"{one.checkpoints} x {size(one.data_bytes())} float32 `{suffix}`"
        with (
            on_disk(one, settings) as large,
            on_disk(one._replace(tensors=many, elements=elements), settings) as small,
        ):
            jobs = {"1 tensor": Job(ours(large, settings), large), "many": Job(ours(small, settings), small)}
            a, b = in_turn(label, jobs, settings).values()
        yield (
            label,
            *(f"{a.seconds:.2f} s", f"{b.seconds:.2f} s", f"{b.seconds / a.seconds:.2f}"),
            *(f"{a.fold_seconds:.2f} s", f"{b.fold_seconds:.2f} s", f"{b.fold_seconds / a.fold_seconds:.2f}"),
        )
