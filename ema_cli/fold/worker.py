"""One thread of the fold: it reads, sums, rounds and writes one block after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.fold.concatenation import PieceRun, piece_shapes, runs_in
from ema_cli.fold.constants import as_written
from ema_cli.fold.conversion import LARGEST, Bytes, Float64, components, decode, numbers_in, round_to
from ema_cli.fold.lanes import Lane
from ema_cli.fold.schedule import Block
from ema_cli.fold.small_tensors import SmallTensors
from ema_cli.fold.state import FoldState
from ema_cli.fold.statistics import Sum, dot
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
        self._last = np.empty(state.plan.buffers.block_elements)
        self._scratch = np.empty(state.plan.buffers.block_elements)
        self._newest: Bytes = np.empty(0, dtype=np.uint8)
        """The block as the last checkpoint stores it, in the buffer of the lane."""
        self._runs = SmallTensors(state, lane)
        self._tensor = -1
        self._extents: list[tuple[int, Located]] = []

    def process(self, block: Block | TensorRun) -> int:
        """Fold or copy one block, or a run of small tensors; return how many bytes were read for it."""
        if isinstance(block, TensorRun):
            read, alone = self._runs.process(block)
            for number in alone:
                self.process(Block(number, 0, 0, self._state.plan.tensors[number].elements))
            return read
        if block.number != self._tensor:
            self._extents = self._state.schedule.extents(block.number)
            self._tensor = block.number
        tensor = self._state.plan.tensors[block.number]
        if tensor.pieces is not None:
            return self._concatenate(block, tensor.pieces)
        return self._copy(block) if tensor.action is Action.COPIED else self._average(block)

    def _copy(self, block: Block) -> int:
        tensor = self._state.plan.tensors[block.number]
        raw = self._lane.buffer(block.count * tensor.dtype.itemsize)
        read_elements(self._extents[0][1], block.start, raw, self._state.integrity.add)
        for sink in self._state.sinks:
            sink.write(tensor.offset + block.start * tensor.dtype.itemsize, raw.data)
        written = [zlib_ng.crc32(raw)] * len(self._state.sinks)
        self._state.close(block, [], [], written)
        return len(raw)

    def _average(self, block: Block) -> int:
        tensor = self._state.plan.tensors[block.number]
        count = block.count * components(tensor.dtype)
        last = self._last[:count]
        sampler = self._state.sample.sampler(block) if self._state.sample is not None else None
        crcs, lengths = [], []
        self._lane.start(count)
        for row, (i, extent) in enumerate(self._extents):
            self._state.raise_if_stopping()  # a block of a thousand checkpoints takes too long to wait for
            dtype = extent.layout.dtype
            raw = self._lane.buffer(block.count * dtype.itemsize)
            crcs.append(self._read(extent, block.start, raw))
            lengths.append(len(raw))
            self._lane.add(raw, dtype, self._state.weights[i])
            if sampler is not None:
                sampler.take(row, raw, dtype)
        decode(raw, dtype, last)
        self._newest = raw
        sums, written = [], []
        for k, total in enumerate(self._lane.sums()):
            squares, crc = self._finish(k, block, total, last, crcs)
            sums.append(squares)
            written.append(crc)
        last_squared = dot(last, last)
        self._state.statistics.add(block, [(*squares, last_squared) for squares in sums])
        self._state.close(block, crcs, lengths, written)
        return sum(lengths)

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
        values, scratch = self._last[: block.count], self._scratch[: block.count]
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
        values, scaled = self._last[: block.count], self._scratch[: block.count]
        for run in runs:
            np.multiply(run.place(values), factors[run.row], out=run.place(scaled))
        rounded = round_to(scaled, tensor.dtype)
        refuse_overflow(tensor, scaled, rounded)
        self._state.sinks[k].write(tensor.offset + block.start * tensor.dtype.itemsize, rounded.data)
        return zlib_ng.crc32(rounded)

    def _finish(
        self, k: int, block: Block, total: Float64, last: Float64, crcs: Sequence[int]
    ) -> tuple[tuple[Sum, Sum], int]:
        """Check, round and write one average; return |average|^2 and |average - last|^2, and the CRC-32 written.

        ``crcs`` are those of the block in the checkpoints read.
        """
        tensor = self._state.plan.tensors[block.number]
        squared = dot(total, total)
        # A square can overflow although the number itself is finite.
        finite = bool(np.isfinite(squared[0]) or np.isfinite(total).all())
        numbers, rounded = total, round_to(total, tensor.dtype)
        row = self._state.constants.row_of(k, block.number, crcs, finite=finite)
        stored = None if row is None else self._constant(k, block, row, rounded, finite=finite)
        if stored is not None:
            numbers, rounded = stored
            self._state.statistics.mark_kept(k, block)
        elif not finite and not self._state.allow_nonfinite:
            refuse_nonfinite(self._state.plan, block, self._extents, self._lane)
        if not finite:
            self._state.statistics.mark_nonfinite(k, block)
        if self._may_overflow(k, tensor.dtype.name):
            refuse_overflow(tensor, numbers, rounded)
        self._state.sinks[k].write(tensor.offset + block.start * tensor.dtype.itemsize, rounded.data)
        difference = np.subtract(total, last, out=self._scratch[: len(total)])
        return (squared, dot(difference, difference)), zlib_ng.crc32(rounded)

    def _constant(
        self, k: int, block: Block, row: int, rounded: Bytes, *, finite: bool
    ) -> tuple[Float64, Bytes] | None:
        """Return a block of a constant as it is stored in checkpoint ``row``, unless the sum has given the same."""
        tensor = self._state.plan.tensors[block.number]
        extent = self._extents[row][1]
        dtype = extent.layout.dtype
        is_last = row == len(self._extents) - 1
        raw = self._newest if is_last else read_block(extent, block.start, block.count)
        stored = as_written(raw, dtype, tensor.dtype)
        if finite and np.array_equal(stored, rounded):
            return None
        return (numbers_in(raw, dtype), stored) if self._state.constants.includes(k, block.number) else None

    def _may_overflow(self, k: int, output: str) -> bool:
        """Return whether average k may exceed the range of the element type ``output``.

        An average is between its inputs, so it overflows only if the output type is narrower than an input type, or if
        its weights, given by hand and not normalized, sum to more than one.
        """
        largest = LARGEST[output]
        return self._state.expands[k] or any(LARGEST[extent.layout.dtype.name] > largest for _, extent in self._extents)
