"""Run the fold: worker threads that read, sum, round and write one block after the other.

Input -> output: a ``Plan`` and one sink per average -> the sinks filled, and statistics per tensor. Memory is that
of the workers' buffers, whatever the size of the model and the number of checkpoints.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.findings import FoldOutcome
from ema_cli.fold.checks import LARGEST, refuse_nonfinite, refuse_overflow
from ema_cli.fold.contents import Contents
from ema_cli.fold.decode import Bytes, Float64, components, decode
from ema_cli.fold.geometry import Geometry, make_geometry
from ema_cli.fold.integrity import Integrity
from ema_cli.fold.lane import Lane
from ema_cli.fold.path import describe_run
from ema_cli.fold.rounding import round_to
from ema_cli.fold.schedule import Block, Schedule
from ema_cli.fold.statistics import Statistics, add_spreads, dot
from ema_cli.options import GeometryMode
from ema_cli.records import Action, Plan
from ema_cli.storage.extents import Extent, Located
from ema_cli.storage.gather import read_elements

_REPORT_SECONDS = 0.1
_MOST_SUM = 1 + 1e-9
"""Of the weights of an average: one, and roundings."""


class Sink(Protocol):
    """Takes the data section of one output, in any order."""

    def write(self, offset: int, data: Bytes) -> None:
        """Place ``data`` at byte ``offset`` of the data section. Called from several threads."""


def fold(
    plan: Plan,
    sinks: Sequence[Sink],
    make_lane: Callable[[], Lane],
    *,
    allow_nonfinite: bool = False,
    geometry: GeometryMode = "none",
    on_bytes: Callable[[int], None] = lambda _: None,
) -> FoldOutcome:
    """Fold every tensor of ``plan`` into ``sinks``; return the statistics per average and tensor, and the geometry.

    Args:
        plan: what to read, with which weights.
        sinks: one per output of the plan.
        make_lane: makes the lane of one worker.
        allow_nonfinite: fold NaN and infinity instead of refusing them.
        geometry: whether the distances between the checkpoints are measured, and on how much.
        on_bytes: told now and then, from the calling thread, how many input bytes are done.

    Raises:
        InputRefused: an input is not finite or damaged, or an average is too large for its type.
        InputChanged: an input could not be read to its end.
        OutputError: a sink could not write.

    """
    run = _Run(plan, sinks, make_geometry(geometry, plan), allow_nonfinite=allow_nonfinite)
    threads = [
        threading.Thread(target=run.work, args=(make_lane,), name=f"fold-{i}", daemon=True)
        for i in range(plan.buffers.threads)
    ]
    try:
        for thread in threads:
            thread.start()
        while not run.finished.wait(_REPORT_SECONDS):
            on_bytes(run.done_bytes)
    finally:
        run.stop = True
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if run.failure is not None:
        raise run.failure
    on_bytes(run.done_bytes)
    run.integrity.finish()
    return run.outcome()


class _Run:
    """What the workers of one fold share."""

    def __init__(self, plan: Plan, sinks: Sequence[Sink], geometry: Geometry | None, *, allow_nonfinite: bool) -> None:
        self.plan = plan
        self.sinks = sinks
        self.geometry = geometry
        self.allow_nonfinite = allow_nonfinite
        self.schedule = Schedule(plan)
        self.statistics = Statistics(plan)
        self.contents = Contents(plan)
        self.integrity = Integrity()
        self.weights = list(zip(*(output.weighting.weights for output in plan.outputs), strict=True))
        self.expands = [math.fsum(output.weighting.weights) > _MOST_SUM for output in plan.outputs]
        self.done_bytes = 0
        self.stop = False
        self.failure: BaseException | None = None
        self.finished = threading.Event()
        self._working = plan.buffers.threads
        self._lock = threading.Lock()

    def outcome(self) -> FoldOutcome:
        """Return what was found, once all blocks are done."""
        found = describe_run(self.geometry, self.plan.used) if self.geometry is not None else None
        by_average = self.statistics.by_average
        if self.geometry is not None and found is not None:
            by_average = add_spreads(by_average, self.geometry.spreads, self.geometry.looked_at)
        return FoldOutcome(statistics=tuple(map(tuple, by_average)), geometry=found, contents=self.contents.digests())

    def work(self, make_lane: Callable[[], Lane]) -> None:
        """Take blocks until there are none left, or another worker failed."""
        try:
            with np.errstate(all="ignore"):
                worker = _Worker(self, make_lane())
                while not self.stop and (block := self.schedule.take()) is not None:
                    done = worker.process(block)
                    with self._lock:
                        self.done_bytes += done
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            with self._lock:
                self.failure = self.failure or failure
            self.stop = True
        with self._lock:
            self._working -= 1
            if self._working == 0:
                self.finished.set()


class _Worker:
    """One thread's lane and its scratch memory."""

    def __init__(self, run: _Run, lane: Lane) -> None:
        self._run = run
        self._lane = lane
        self._last = np.empty(run.plan.buffers.block_elements)
        self._scratch = np.empty(run.plan.buffers.block_elements)
        self._tensor = -1
        self._extents: list[tuple[int, Located]] = []

    def process(self, block: Block) -> int:
        """Fold or copy one block; return how many bytes were read for it."""
        if block.number != self._tensor:
            self._extents = self._run.schedule.extents(block.number)
            self._tensor = block.number
        if self._run.plan.tensors[block.number].action is Action.COPIED:
            return self._copy(block)
        return self._average(block)

    def _copy(self, block: Block) -> int:
        tensor = self._run.plan.tensors[block.number]
        raw = self._lane.buffer(block.count * tensor.dtype.itemsize)
        read_elements(self._extents[0][1], block.start, raw, self._run.integrity.see)
        for sink in self._run.sinks:
            sink.write(tensor.offset + block.start * tensor.dtype.itemsize, raw)
        return len(raw)

    def _average(self, block: Block) -> int:
        tensor = self._run.plan.tensors[block.number]
        count = block.count * components(tensor.dtype)
        last, done = self._last[:count], 0
        view = self._run.geometry.view(block, count) if self._run.geometry is not None else None
        crcs, lengths = [], []
        self._lane.start(count)
        for row, (i, extent) in enumerate(self._extents):
            dtype = extent.layout.dtype
            raw = self._lane.buffer(block.count * dtype.itemsize)
            crcs.append(self._read(extent, block, raw))
            lengths.append(len(raw))
            self._lane.add(raw, dtype, self._run.weights[i])
            if view is not None:
                view.see(row, raw, dtype)
            done += len(raw)
        self._run.contents.add(block, crcs, lengths)
        if view is not None:
            view.close()
        decode(raw, dtype, last)
        sums = [self._finish(k, block, total, last) for k, total in enumerate(self._lane.sums())]
        last_squared = dot(last, last)
        self._run.statistics.add(block, [(*found, last_squared) for found in sums])
        return done

    def _read(self, extent: Located, block: Block, raw: Bytes) -> int:
        """Read a block of a checkpoint and return its CRC-32."""
        integrity = self._run.integrity
        if isinstance(extent, Extent) and extent.layout.strides is None:
            read_elements(extent, block.start, raw)
            crc = zlib_ng.crc32(raw)
            integrity.see_crc(extent, extent.offset + block.start * extent.layout.dtype.itemsize, len(raw), crc)
            return crc
        read_elements(extent, block.start, raw, integrity.see)
        return zlib_ng.crc32(raw)

    def _finish(self, k: int, block: Block, total: Float64, last: Float64) -> tuple[float, float]:
        """Check, round and write one average; return |average|^2 and |average - last|^2."""
        tensor = self._run.plan.tensors[block.number]
        squared = dot(total, total)
        if not np.isfinite(squared) and not np.isfinite(total).all():  # a square can overflow where the number does not
            self._meet_nonfinite(k, block)
        rounded = round_to(total, tensor.dtype)
        if self._may_overflow(k, tensor.dtype.name):
            refuse_overflow(tensor, total, rounded)
        self._run.sinks[k].write(tensor.offset + block.start * tensor.dtype.itemsize, rounded)
        difference = np.subtract(total, last, out=self._scratch[: len(total)])
        return squared, dot(difference, difference)

    def _meet_nonfinite(self, k: int, block: Block) -> None:
        if not self._run.allow_nonfinite:
            refuse_nonfinite(self._run.plan, block, self._extents, self._lane)
        self._run.statistics.note_nonfinite(k, block)

    def _may_overflow(self, k: int, output: str) -> bool:
        """An average lies between its inputs, so only a type narrower than one of theirs can be too small.

        Weights by hand that were not normalised can add up to more than an average.
        """
        largest = LARGEST[output]
        return self._run.expands[k] or any(LARGEST[extent.layout.dtype.name] > largest for _, extent in self._extents)
