"""The blocks that the threads of a fold take, and the reads that are announced ahead of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ema_cli.evidence.probe import examine_series
from ema_cli.fold import schedule
from ema_cli.fold.schedule import Block, Schedule
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.plan import Plan
from ema_cli.storage.extents import Extent
from ema_cli.storage.source import FileSource
from tests.helpers.series import write_series

_WINDOW = 1 << 16


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """A plan of two checkpoints of one tensor, of 16 windows of four blocks; two windows of each are announced."""
    monkeypatch.setattr(FileSource, "window_bytes", _WINDOW)
    monkeypatch.setattr(FileSource, "prefetch_bytes", 4 * _WINDOW)
    monkeypatch.setattr(schedule, "TOGETHER_BYTES", 0)
    paths = write_series(tmp_path, [{"w": torch.linspace(0, last, 16 * _WINDOW // 4)} for last in (1, 2)])
    with planned(make_options(paths, decay=0.5)) as made:
        yield replace(made, buffers=replace(made.buffers, threads=2, block_elements=_WINDOW // 16))


def _first_byte(plan: Plan) -> int:
    extent = plan.checkpoints[0].index.extent(0)
    assert isinstance(extent, Extent)
    return extent.offset


def test_the_reads_of_the_sample_are_announced_together(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that answers slowly answers all of them at the same time."""
    announced: set[tuple[Path, int, int]] = set()
    read: set[tuple[Path, int, int]] = set()

    read_whole = FileSource.read_into

    def will_need(source: FileSource, offset: int, length: int) -> None:
        assert not read
        announced.add((source.path, offset, length))

    def read_into(source: FileSource, offset: int, buffer: memoryview) -> None:
        read.add((source.path, offset, len(buffer)))
        read_whole(source, offset, buffer)

    monkeypatch.setattr(FileSource, "will_need", will_need)
    monkeypatch.setattr(FileSource, "read_into", read_into)
    examine_series(plan, make_options(["any"], decay=0.5))
    assert len(read) > 2
    assert read == announced


def test_a_thread_takes_a_block_while_another_one_announces(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """An announcement takes as long as the disk has no room for it, and must not stop the threads that can work."""
    announcing, taken = threading.Event(), threading.Event()

    def will_need(_: FileSource, offset: int, __: int) -> None:
        if offset > _first_byte(plan):
            announcing.set()
            assert taken.wait(10), "the other thread has waited"

    monkeypatch.setattr(FileSource, "will_need", will_need)
    blocks = Schedule(plan)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(lambda: [blocks.take() for _ in range(2)])
        assert announcing.wait(10)
        assert blocks.take() is not None
        taken.set()
        assert None not in taking.result()


def test_no_thread_overtakes_the_announcements(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is announced in both checkpoints before it is taken, and taken once."""
    announced: dict[Path, int] = {}
    pause = threading.Event()

    def will_need(source: FileSource, offset: int, length: int) -> None:
        pause.wait(0.002)
        assert offset == announced.get(source.path, _first_byte(plan))
        announced[source.path] = offset + length

    monkeypatch.setattr(FileSource, "will_need", will_need)
    blocks = Schedule(plan)

    def take_all() -> list[int]:
        starts = []
        while (block := blocks.take()) is not None:
            assert isinstance(block, Block)
            end = _first_byte(plan) + 4 * (block.start + block.count)
            assert len(announced) == 2
            assert all(end <= reached for reached in announced.values())
            starts.append(block.start)
        return starts

    with ThreadPoolExecutor(4) as pool:
        takers = [pool.submit(take_all) for _ in range(4)]
        starts = sorted(start for taker in takers for start in taker.result())
    assert starts == list(range(0, 16 * _WINDOW // 4, _WINDOW // 16))
