"""The average of a run of small tensors: the same numbers as tensor by tensor, with one sum for all of them.

Input -> output: a ``TensorRun`` -> its tensors in the sinks, and for each its statistics and checksums. Tensors that
need more than that are returned: those that are not finite, too large for their type, or constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.fold.conversion import LARGEST, Bytes, round_to
from ema_cli.fold.lanes import Lane
from ema_cli.fold.state import FoldState
from ema_cli.fold.statistics import squares_of_each
from ema_cli.fold.tensor_runs import TensorRun

Numbers = NDArray[np.int64]


class SmallTensors:
    """Folds runs of small tensors in the lane of one worker."""

    def __init__(self, state: FoldState, lane: Lane) -> None:
        self._state = state
        self._lane = lane

    def process(self, run: TensorRun) -> tuple[int, list[int]]:
        """Fold a run; return the bytes that were read, and the tensors that must be folded by themselves."""
        plan, places = self._state.plan, self._state.schedule.places
        dtype = plan.tensors[run.first].dtype
        bounds = places.bounds(run)
        crcs, newest = self._sum(run, bounds)
        totals = self._lane.sums()
        rounded = [round_to(total, dtype) for total in totals]
        alone = np.zeros(len(bounds) - 1, dtype=bool)
        for k, total in enumerate(totals):
            if not rounded[k].fits:
                alone |= np.logical_or.reduceat(~(np.abs(total) < LARGEST[dtype.name]), bounds[:-1])
            alone |= self._may_be_constant(k, run, crcs)
        of_last = places.dtype(run, plan.used[-1])
        for first, stop in _segments(alone):
            written = self._write(run, first, stop, bounds, [raw for raw, _ in rounded])
            here = slice(bounds[first], bounds[stop])
            last = newest[here.start * of_last.itemsize : here.stop * of_last.itemsize]
            for k, total in enumerate(totals):
                sums = squares_of_each(total[here], last, of_last, bounds[first : stop + 1] - bounds[first])
                self._state.statistics.add_tensors(run.first + first, k, sums)
            self._state.close_tensors(run.first + first, [row[first:stop] for row in crcs], written)
        read = sum(places.dtype(run, i).itemsize for i in plan.used) * int(bounds[-1])
        return read, (np.flatnonzero(alone) + run.first).tolist()

    def _sum(self, run: TensorRun, bounds: Numbers) -> tuple[list[list[int]], Bytes]:
        """Read the run in every checkpoint and add it up; return the CRC-32s of its tensors, and the last bytes."""
        state, places = self._state, self._state.schedule.places
        sampler = state.sample.run_sampler(run) if state.sample is not None else None
        crcs = []
        self._lane.start(int(bounds[-1]))
        for row, i in enumerate(state.plan.used):
            state.raise_if_stopping()
            dtype = places.dtype(run, i)
            raw = self._lane.buffer(int(bounds[-1]) * dtype.itemsize)
            places.read(run, i, raw, state.integrity)
            crcs.append(_crcs(raw, bounds * dtype.itemsize))
            self._lane.add(raw, dtype, state.weights[i])
            if sampler is not None:
                sampler.take(row, raw, dtype)
        return crcs, raw

    def _may_be_constant(self, k: int, run: TensorRun, crcs: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Return which tensors have the same bytes in all checkpoints of average ``k``."""
        rows = self._state.constants.rows(k)
        if not rows:
            return np.zeros(run.stop - run.first, dtype=bool)
        compared = np.array([crcs[row] for row in rows], dtype=np.uint32)
        return np.asarray((compared == compared[0]).all(axis=0))

    def _write(
        self, run: TensorRun, first: int, stop: int, bounds: Numbers, rounded: Sequence[Bytes]
    ) -> list[list[int]]:
        """Write some neighbors of a run to every sink; return the CRC-32s of each."""
        tensors = self._state.plan.tensors
        edges = bounds[first : stop + 1] * tensors[run.first].dtype.itemsize
        for sink, raw in zip(self._state.sinks, rounded, strict=True):
            sink.write(tensors[run.first + first].offset, raw[edges[0] : edges[-1]].data)
        return [_crcs(raw, edges) for raw in rounded]


def _segments(alone: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and the stop of each stretch of tensors that are not ``alone``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], alone, [True])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _crcs(raw: Bytes, edges: Numbers) -> list[int]:
    """Return the CRC-32 of each piece of ``raw`` between two edges."""
    view, crc32 = raw.data, zlib_ng.crc32
    return [crc32(view[begin:end]) for begin, end in pairwise(edges.tolist())]
