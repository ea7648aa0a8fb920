"""One thread of the fold: it reads, sums, rounds and writes one block after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.fold.concatenation import PieceRun, piece_shapes, runs_in
from ema_cli.fold.constants import as_written
from ema_cli.fold.conversion import Bytes, Float64, Rounded, components, decode, numbers_in, round_to
from ema_cli.fold.geometry.sample import BlockSampler
from ema_cli.fold.kernel import READS_FILES
from ema_cli.fold.lanes import CompiledLane, Lane
from ema_cli.fold.schedule import Block
from ema_cli.fold.state import FoldState
from ema_cli.fold.statistics import Sum, squares
from ema_cli.fold.value_errors import refuse_nonfinite, refuse_nonfinite_piece, refuse_overflow
from ema_cli.records.plan import Action, Concatenation
from ema_cli.storage.extents import Extent, Located
from ema_cli.storage.source import FileSource, open_together
from ema_cli.storage.strided_read import read_block, read_elements

_TOGETHER = 16
"""Checkpoints of a block that are read with one call."""


class Worker:
    """One thread's lane and its scratch memory."""

    def __init__(self, state: FoldState, lane: Lane) -> None:
        self._state = state
        self._lane = lane
        self._values = np.empty(state.plan.buffers.block_elements)
        """Of the pieces of a concatenated tensor."""
        self._scaled = np.empty(state.plan.buffers.block_elements)
        """The same, times their numbers."""
        self._newest: Bytes = np.empty(0, dtype=np.uint8)
        """The block as the checkpoint read last stores it, in the buffer of the lane."""
        self._tensor = -1
        self._extents: list[tuple[int, Located]] = []
        self._weights: Float64 = np.empty(0)
        """(checkpoints read, averages) float64."""

    def process(self, block: Block) -> int:
        """Fold or copy one block; return how many bytes were read for it."""
        if block.number != self._tensor:
            self._extents = self._state.schedule.extents(block.number)
            self._weights = np.array([self._state.weights[i] for i, _ in self._extents])
            self._tensor = block.number
        tensor = self._state.plan.tensors[block.number]
        if tensor.pieces is not None:
            return self._concatenate(block, tensor.pieces)
        return self._copy(block) if tensor.action is Action.COPIED else self._average(block)

    def _copy(self, block: Block) -> int:
        tensor = self._state.plan.tensors[block.number]
        raw = self._lane.buffer(block.count * tensor.dtype.itemsize)
        read_elements(self._extents[0][1], block.start, raw, self._state.integrity.add)
        written = [self._write(k, block, raw) for k in range(len(self._state.sinks))]
        self._state.close(block, [], [], written)
        return len(raw)

    def _average(self, block: Block) -> int:
        tensor = self._state.plan.tensors[block.number]
        sampler = self._state.sample.sampler(block) if self._state.sample is not None else None
        crcs: list[int] = []
        self._lane.start(block.count * components(tensor.dtype))
        while len(crcs) < len(self._extents):
            self._state.raise_if_stopping()  # a block of a thousand checkpoints takes too long to wait for
            crcs += self._add_files(block, len(crcs), sampler) or [self._add_one(block, len(crcs), sampler)]
        lengths = [block.count * extent.layout.dtype.itemsize for _, extent in self._extents]
        finished = [self._finish(k, block, total, crcs) for k, total in enumerate(self._lane.sums())]
        self._state.statistics.add(block, [sums for sums, _ in finished])
        self._state.close(block, crcs, lengths, [crc for _, crc in finished])
        return sum(lengths)

    def _add_files(self, block: Block, row: int, sampler: BlockSampler | None) -> list[int]:
        """Read and add the block in several checkpoints, from ``row`` on, with one call; return their CRC-32s.

        The result is empty if the first cannot be read so: it is not a contiguous part of a file, or ends early.
        """
        if not isinstance(self._lane, CompiledLane) or not READS_FILES:
            return []
        files = list(_runs_of_files(extent for _, extent in self._extents[row : row + _TOGETHER]))
        if not files:
            return []
        with open_together([source for _, source in files]) as descriptors:
            places = [
                (descriptor, extent.offset + block.start * extent.layout.dtype.itemsize, extent.layout.dtype)
                for descriptor, (extent, _) in zip(descriptors, files, strict=False)
            ]
            crcs = self._lane.read_and_add(places, self._weights[row : row + len(places)], sampler, row)
        for (extent, _), (_, offset, dtype), crc in zip(files, places, crcs, strict=False):
            self._state.integrity.add_crc(extent, offset, block.count * dtype.itemsize, crc)
        if crcs:
            self._newest = self._lane.newest(block.count * places[len(crcs) - 1][2].itemsize)
        return crcs

    def _add_one(self, block: Block, row: int, sampler: BlockSampler | None) -> int:
        """Read and add the block in one checkpoint; return its CRC-32."""
        i, extent = self._extents[row]
        dtype = extent.layout.dtype
        self._newest = self._lane.buffer(block.count * dtype.itemsize)
        crc = self._read(extent, block.start, self._newest)
        self._lane.add(self._newest, dtype, self._state.weights[i])
        if sampler is not None:
            sampler.take(row, self._newest, dtype)
        return crc

    def _write(self, k: int, block: Block, raw: Bytes) -> int:
        """Write a block of output ``k`` and return its CRC-32."""
        tensor = self._state.plan.tensors[block.number]
        self._state.sinks[k].write(tensor.offset + block.start * tensor.dtype.itemsize, raw.data)
        return zlib_ng.crc32(raw)

    def _read(self, extent: Located, start: int, raw: Bytes) -> int:
        """Read elements of a checkpoint from ``start`` on, and return their CRC-32."""
        integrity = self._state.integrity
        if isinstance(extent, Extent) and extent.layout.strides is None:
            read_elements(extent, start, raw)
            crc = zlib_ng.crc32(raw)
            integrity.add_crc(extent, extent.offset + start * extent.layout.dtype.itemsize, len(raw), crc)
            return crc
        read_elements(extent, start, raw, integrity.add)
        return zlib_ng.crc32(raw)

    def _concatenate(self, block: Block, pieces: Concatenation) -> int:
        """Put the pieces of a block side by side, then for each average each piece times its number, rounded once.

        The numbers are few, so the host does it in every lane.
        """
        plan = self._state.plan
        tensor = plan.tensors[block.number]
        runs = list(runs_in(piece_shapes(plan, tensor), pieces.axis, block.start, block.count))
        values, scratch = self._values[: block.count], self._scaled[: block.count]
        crcs, lengths = [0] * len(self._extents), [0] * len(self._extents)
        for run in runs:
            i, extent = self._extents[run.row]
            raw = self._lane.buffer(run.count * extent.layout.dtype.itemsize)
            crcs[run.row] = zlib_ng.crc32_combine(crcs[run.row], self._read(extent, run.start, raw), len(raw))
            lengths[run.row] += len(raw)
            decode(raw, extent.layout.dtype, scratch[: run.count])
            if not np.isfinite(scratch[: run.count]).all():
                refuse_nonfinite_piece(plan, tensor, i)
            target = run.place(values)
            target[...] = scratch[: run.count].reshape(target.shape)
        written = [self._write_pieces(k, block, runs, factors) for k, factors in enumerate(pieces.factors)]
        contributes = tensor.action is Action.CONCATENATED
        self._state.close(block, crcs if contributes else [], lengths if contributes else [], written)
        return sum(lengths)

    def _write_pieces(self, k: int, block: Block, runs: Sequence[PieceRun], factors: Sequence[float]) -> int:
        """Multiply the pieces, round and write them for average ``k``; return the CRC-32 written."""
        tensor = self._state.plan.tensors[block.number]
        values, scaled = self._values[: block.count], self._scaled[: block.count]
        for run in runs:
            np.multiply(run.place(values), factors[run.row], out=run.place(scaled))
        rounded = round_to(scaled, tensor.dtype)
        if not rounded.fits:
            refuse_overflow(tensor, scaled, rounded.raw)
        return self._write(k, block, rounded.raw)

    def _finish(self, k: int, block: Block, total: Float64, crcs: Sequence[int]) -> tuple[tuple[Sum, Sum, Sum], int]:
        """Check, round and write one average; return its sums of squares and the CRC-32 written.

        ``crcs`` are those of the block in the checkpoints read.
        """
        tensor = self._state.plan.tensors[block.number]
        of_last = self._extents[-1][1].layout.dtype
        rounded = round_to(total, tensor.dtype)
        finite = rounded.fits or bool(np.isfinite(total).all())
        row = self._state.constants.row_of(k, block.number, crcs, finite=finite)
        stored = None if row is None else self._constant(k, block, row, rounded, finite=finite)
        if stored is not None:
            self._state.statistics.mark_kept(k, block)
        elif not finite and not self._state.allow_nonfinite:
            refuse_nonfinite(self._state.plan, block, self._extents, self._lane)
        if not finite:
            self._state.statistics.mark_nonfinite(k, block)
        numbers, written = stored or (total, rounded)
        if not written.fits:
            refuse_overflow(tensor, numbers, written.raw)
        return squares(total, self._newest, of_last), self._write(k, block, written.raw)

    def _constant(
        self, k: int, block: Block, row: int, rounded: Rounded, *, finite: bool
    ) -> tuple[Float64, Rounded] | None:
        """Return a block of a constant as it is stored in checkpoint ``row``, unless the sum has given the same."""
        tensor = self._state.plan.tensors[block.number]
        extent = self._extents[row][1]
        dtype = extent.layout.dtype
        is_last = row == len(self._extents) - 1
        raw = self._newest if is_last else read_block(extent, block.start, block.count)
        stored = as_written(raw, dtype, tensor.dtype)
        if finite and np.array_equal(stored, rounded.raw):
            return None
        if not self._state.constants.includes(k, block.number):
            return None
        return numbers_in(raw, dtype), Rounded(stored, fits=False)


def _runs_of_files(extents: Iterable[Located]) -> Iterator[tuple[Extent, FileSource]]:
    """Yield the extents, and their files, up to the first that is not a contiguous part of a file."""
    for extent in extents:
        if not (isinstance(extent, Extent) and extent.layout.strides is None and isinstance(extent.source, FileSource)):
            return
        yield extent, extent.source
