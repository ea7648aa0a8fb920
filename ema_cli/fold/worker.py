"""One thread of the fold: it reads, sums, rounds and writes one block after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.fold.concatenation import PieceRun, piece_shapes, runs_in
from ema_cli.fold.constants import as_written
from ema_cli.fold.conversion import Bytes, Float64, Rounded, components, decode, numbers_in, round_to
from ema_cli.fold.file_blocks import AveragedBlock, FileBlocks
from ema_cli.fold.geometry.sample import BlockSampler
from ema_cli.fold.kernel import READS_FILES
from ema_cli.fold.lanes import CompiledLane, Lane
from ema_cli.fold.schedule import Block, single_blocks
from ema_cli.fold.small_tensors import SmallTensors
from ema_cli.fold.state import FoldState
from ema_cli.fold.statistics import squares
from ema_cli.fold.tensor_runs import TensorRun
from ema_cli.fold.value_errors import refuse_nonfinite, refuse_nonfinite_piece, refuse_overflow
from ema_cli.records.plan import Action, Concatenation
from ema_cli.storage.extents import Extent, Located
from ema_cli.storage.strided_read import read_block, read_elements


class Worker:
    """One thread's lane and its scratch memory."""

    def __init__(self, state: FoldState, lane: Lane) -> None:
        self._state = state
        self._lane = lane
        self._files = FileBlocks(state, lane) if isinstance(lane, CompiledLane) and READS_FILES else None
        self._values = np.empty(state.plan.buffers.block_elements)
        """Of the pieces of a concatenated tensor."""
        self._scaled = np.empty(state.plan.buffers.block_elements)
        """The same, times their numbers."""
        self._newest: Bytes | None = None
        """The block as the checkpoint read last stores it, if that is still in the buffer of the lane."""
        self._runs = SmallTensors(state, lane)
        self._tensor = -1
        self._extents: list[tuple[int, Located]] = []

    def process(self, block: Block | TensorRun) -> int:
        """Fold or copy one or more blocks, or a run of small tensors; return how many bytes were read for it."""
        if isinstance(block, TensorRun):
            read, alone = self._runs.process(block)
            for number in alone:
                elements = self._state.plan.tensors[number].elements
                self.process(Block(number=number, part=0, start=0, count=elements))
            return read
        if block.number != self._tensor:
            self._extents = self._state.schedule.extents(block.number)
            if self._files is not None:
                self._files.begin(self._extents)
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
        sampler = self._state.sample.sampler(block) if self._state.sample is not None else None
        averaged = self._files.average(block, sampler) if self._files is not None else None
        self._newest = None
        if averaged is None and block.parts > 1:
            return sum(map(self._average, single_blocks(self._state.plan, block)))
        if averaged is None:
            averaged = self._average_one_by_one(block, sampler)
        written = [self._finish(k, block, averaged) for k in range(len(self._state.sinks))]
        lengths = [block.count * extent.layout.dtype.itemsize for _, extent in self._extents]
        self._state.statistics.add(block, averaged.squares)
        self._state.close(block, averaged.crcs, lengths, written)
        return sum(lengths)

    def _average_one_by_one(self, block: Block, sampler: BlockSampler | None) -> AveragedBlock:
        """Read and add the block checkpoint by checkpoint."""
        dtype = self._state.plan.tensors[block.number].dtype
        self._lane.start(block.count * components(dtype))
        crcs = []
        for row in range(len(self._extents)):
            self._state.raise_if_stopping()  # a block of a thousand checkpoints takes too long to wait for
            raw, crc = self._add_one(block, row, sampler)
            crcs.append(crc)
        self._newest = raw
        totals, of_last = self._lane.sums(), self._extents[-1][1].layout.dtype
        rounded = [round_to(total, dtype) for total in totals]
        sums = np.stack([squares(total, raw, of_last)[None] for total in totals])
        return AveragedBlock(crcs, rounded, sums, totals)

    def _add_one(self, block: Block, row: int, sampler: BlockSampler | None) -> tuple[Bytes, int]:
        """Read and add the block in one checkpoint; return it, in the buffer of the lane, and its CRC-32."""
        i, extent = self._extents[row]
        dtype = extent.layout.dtype
        raw = self._lane.buffer(block.count * dtype.itemsize)
        crc = self._read(extent, block.start, raw)
        self._lane.add(raw, dtype, self._state.weights[i])
        if sampler is not None:
            sampler.take(row, raw, dtype)
        return raw, crc

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

    def _finish(self, k: int, block: Block, averaged: AveragedBlock) -> int:
        """Check and write one average; return the CRC-32 written."""
        tensor = self._state.plan.tensors[block.number]
        rounded = averaged.rounded[k]
        finite = rounded.fits or bool(np.isfinite(averaged.totals[k]).all())
        row = self._state.constants.row_of(k, block.number, averaged.crcs, finite=finite)
        stored = None if row is None else self._constant(k, block, row, rounded, finite=finite)
        if stored is not None:
            self._state.statistics.mark_kept(k, block.number)
        elif not finite and not self._state.allow_nonfinite:
            refuse_nonfinite(self._state.plan, block, self._extents, self._lane)
        if not finite:
            self._state.statistics.mark_nonfinite(k, block.number)
        if stored is None and rounded.fits:
            return self._write(k, block, rounded.raw)
        numbers, written = stored or (averaged.totals[k], rounded.raw)
        refuse_overflow(tensor, numbers, written)
        return self._write(k, block, written)

    def _constant(
        self, k: int, block: Block, row: int, rounded: Rounded, *, finite: bool
    ) -> tuple[Float64, Bytes] | None:
        """Return a block of a constant as it is stored in checkpoint ``row``, unless the sum has given the same."""
        tensor = self._state.plan.tensors[block.number]
        extent = self._extents[row][1]
        dtype = extent.layout.dtype
        is_last = row == len(self._extents) - 1
        raw = self._newest if is_last else None
        if raw is None:
            raw = read_block(extent, block.start, block.count)
        stored = as_written(raw, dtype, tensor.dtype)
        if finite and np.array_equal(stored, rounded.raw):
            return None
        if not self._state.constants.includes(k, block.number, self._state.raise_if_stopping):
            return None
        return numbers_in(raw, dtype), stored
