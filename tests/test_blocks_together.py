"""Several blocks that are folded together give what they give one by one: bytes, statistics, sample and errors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ema_cli.errors import EmaAvgError
from ema_cli.fold import schedule
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold, fold_stretch
from ema_cli.fold.kernel import READS_FILES
from ema_cli.fold.lanes import CompiledLane
from ema_cli.fold.schedule import Stretch
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.fold_results import FoldOutcome, TensorOutcome
from tests.helpers.outputs import Memory
from tests.helpers.series import State, write_series

pytestmark = pytest.mark.skipif(not READS_FILES, reason="there is no kernel that reads files")

BLOCK = 1024
SIZE = 9 * BLOCK + 13
Found = tuple[list[bytes], FoldOutcome, dict[int, TensorOutcome]]


def series(dtype: torch.dtype, count: int) -> list[State]:
    """Return checkpoints with a tensor of many blocks, one that is constant, and one that holds infinity."""
    generator = torch.Generator().manual_seed(count)
    constant = torch.rand(SIZE, generator=generator).to(dtype)
    states = []
    for _ in range(count):
        wide, infinite = torch.randn((2, SIZE), generator=generator).to(dtype)
        infinite[5 * BLOCK + 7] = torch.inf
        partly = torch.cat((constant[: 6 * BLOCK], wide[6 * BLOCK :]))
        states.append({"wide": wide, "constant": constant.clone(), "infinite": infinite, "partly": partly})
    return states


def fold_in_memory(paths: list[Path], decays: list[float], *, threads: int = 1, allow: bool = True) -> Found:
    """Fold with blocks of 1024 elements; return the bytes, the outcome, and what a journal would keep."""
    kept: dict[int, TensorOutcome] = {}
    with planned(make_options(paths, decay=decays)) as plan:
        cut = replace(plan, buffers=replace(plan.buffers, threads=threads, block_elements=BLOCK))
        sinks = [Memory(cut.data_bytes) for _ in cut.outputs]
        found = fold(
            *(cut, sinks, lane_maker("cpu", cut)),
            allow_nonfinite=allow,
            measure_geometry=True,
            on_tensor=lambda outcome: kept.update({outcome.number: outcome}),
        )
    assert all(sink.filled == cut.data_bytes for sink in sinks)
    return [bytes(sink.data) for sink in sinks], found, kept


@pytest.fixture(name="together")
def blocks_read_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects how many blocks the kernel was asked to average at a time."""
    asked: list[int] = []
    original = CompiledLane.start

    def start(self: CompiledLane, count: int) -> None:
        asked.append(-(-count // BLOCK))
        original(self, count)

    monkeypatch.setattr(CompiledLane, "start", start)
    return asked


@pytest.mark.parametrize(
    ("dtype", "count", "decays", "most"),
    [
        (torch.float32, 5, [0.5], 4),
        (torch.bfloat16, 3, [0.5], 8),
        (torch.bfloat16, 3, [0.5, 0.9], 4),
        (torch.complex64, 3, [0.5], 2),
        (torch.float64, 3, [0.5, 0.9], 1),
        (torch.float32, 17, [0.5], 4),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_is_that_of_single_blocks(
    *,
    dtype: torch.dtype,
    count: int,
    decays: list[float],
    most: int,
    threads: int,
    together: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of constants, of numbers that are not finite, and of more checkpoints than one call reads."""
    paths = write_series(tmp_path, series(dtype, count))
    found = fold_in_memory(paths, decays, threads=threads)
    assert max(together) == most
    together.clear()
    monkeypatch.setattr(schedule, "TOGETHER_BYTES", 0)
    assert fold_in_memory(paths, decays) == found
    assert max(together) == 1


def test_bytes_of_many_checkpoints_are_limited(
    together: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that have too many bytes in all checkpoints are not folded together."""
    monkeypatch.setattr(schedule, "_TOGETHER_READ", 5 * 4 * BLOCK * 3)
    fold_in_memory(write_series(tmp_path, series(torch.float32, 5)), [0.5])
    assert max(together) == 3


def test_parts_of_tensors_are_those_of_single_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that folds only some blocks of a tensor reports the same sums of each, and the same checksums."""
    paths = write_series(tmp_path, series(torch.float32, 5))
    found = []
    for most in (16, 0):
        monkeypatch.setattr(schedule, "TOGETHER_BYTES", most)
        with planned(make_options(paths, decay=0.5)) as plan:
            cut = replace(plan, buffers=replace(plan.buffers, threads=2, block_elements=BLOCK))
            state = fold_stretch(
                *(cut, [Memory(cut.data_bytes)], lane_maker("cpu", cut)),
                stretch=Stretch(2, 3, 3, 6),
                skipped=frozenset(),
                allow_nonfinite=True,
                measure_geometry=True,
                on_tensor=lambda _: None,
                on_bytes=lambda _: None,
            )
        found.append(list(state.parts()))
    assert [(part.first, part.stop, len(part.sums[0])) for part in found[0]] == [(3, 10, 7 * 6), (0, 6, 6 * 6)]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["infinite", "short", "large"])
def test_errors_are_those_of_single_blocks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the same checkpoint, tensor and element."""
    states = series(torch.float32, 3)
    if kind == "large":
        states = [{"wide": state["wide"].double()} for state in states]
        states[1]["wide"][7 * BLOCK + 5] = 1e300
        for state, dtype in zip(states, (torch.float32, torch.float64, torch.float32), strict=True):
            state["wide"] = state["wide"].to(dtype)
    paths = write_series(tmp_path, states, form="safetensors")
    messages = []
    for most in (16, 0):
        monkeypatch.setattr(schedule, "TOGETHER_BYTES", most)
        with pytest.raises(EmaAvgError) as caught:
            fold_shortened(paths, shorten=kind == "short")
        messages.append((str(caught.value), caught.value.hint))
    assert messages[0] == messages[1]


def fold_shortened(paths: list[Path], *, shorten: bool) -> None:
    """Fold; before, let the second file lose its end after it was opened."""
    whole = paths[1].read_bytes()
    with planned(make_options(paths, decay=0.5)) as plan:
        cut = replace(plan, buffers=replace(plan.buffers, threads=1, block_elements=BLOCK))
        if shorten:
            os.truncate(paths[1], len(whole) - 2 * 4 * BLOCK)
        try:
            fold(cut, [Memory(cut.data_bytes)], lane_maker("cpu", cut))
        finally:
            paths[1].write_bytes(whole)


def test_blocks_that_are_no_whole_rows_are_not_folded_together(together: list[int], tmp_path: Path) -> None:
    """The rows of their squares would be others."""
    paths = write_series(tmp_path, [{"a": torch.from_numpy(np.arange(2000, dtype=np.float32) + k)} for k in range(2)])
    with planned(make_options(paths, decay=0.5)) as plan:
        cut = replace(plan, buffers=replace(plan.buffers, threads=1, block_elements=1000))
        fold(cut, [Memory(cut.data_bytes)], lane_maker("cpu", cut))
    assert len(together) == 2
