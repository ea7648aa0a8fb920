"""The geometry of a run from a sample: a fixed, seeded choice of elements, the same for any size of blocks.

Every tensor is cut into equal strata, and one element of each is taken, so that a sum over the sample times
elements/taken estimates the sum over all.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from ema_cli.dtypes import DType
from ema_cli.fold.decode import NUMPY, Bytes, Float64, components, decode
from ema_cli.fold.geometry.observer import GeometryObserver, Indices, View, combine
from ema_cli.fold.schedule import Block
from ema_cli.records.plan import Plan

_SAMPLE_BYTES = 8_000_000
"""Of all numbers in the sample together, unless there are more tensors than that."""
_MOST_TAKEN = 1 << 14
"""Elements of the sample, per checkpoint."""
_SEED = 0
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class SampledGeometry(GeometryObserver):
    """Keeps a sample of elements of every checkpoint."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._sizes = [tensor.elements for tensor in plan.tensors]
        self._widths = [components(tensor.dtype) for tensor in plan.tensors]
        self._taken = _share_out(plan, self.looked_at)
        self._first = [0, *accumulate(self._taken)]
        self._starts = [0, *accumulate(k * width for k, width in zip(self._taken, self._widths, strict=True))]
        self._picked = _pick(np.array(self._sizes), np.array(self._taken))
        self._sample = np.zeros((len(plan.used), self._starts[-1]))

    @property
    def sampled_fraction(self) -> float:
        """Elements taken over all elements that take part."""
        whole = sum(size for size, used in zip(self._sizes, self.looked_at, strict=True) if used)
        return sum(self._taken) / max(whole, 1)

    def picked(self, number: int) -> Indices:
        """Return the elements of a tensor that are taken, growing: one of each stratum."""
        return self._picked[self._first[number] : self._first[number + 1]]

    def view(self, block: Block, count: int) -> View | None:
        """Return what takes the sampled elements of a block, if there are any."""
        del count
        number = block.number
        low, high = 0, self._taken[number]
        picked = self.picked(number)
        if block.count < self._sizes[number]:
            low, high = np.searchsorted(picked, (block.start, block.start + block.count)).tolist()
            picked = picked[low:high] - block.start
        if low == high:
            return None
        start, width = self._starts[number], self._widths[number]
        return _Taken(picked, self._sample[:, start + low * width : start + high * width], width)

    def taken_from(self, number: int) -> bytes:
        """Return the numbers of the sample that are of a tensor: float64, checkpoint by checkpoint."""
        return self._columns(number).tobytes()

    def put_back(self, number: int, taken: bytes) -> None:
        """Put those numbers back."""
        columns = self._columns(number)
        columns[...] = np.frombuffer(taken).reshape(columns.shape)

    def _columns(self, number: int) -> Float64:
        return self._sample[:, self._starts[number] : self._starts[number + 1]]

    def gram(self) -> Float64:
        """Scale each tensor's numbers to its size, and compare; the spreads of the tensors fall off on the way."""
        sample = self._sample
        sample -= sample[-1].copy()
        there = [number for number, taken in enumerate(self._taken) if taken]
        if not there:
            return np.zeros((len(self.placed) + len(self.weights),) * 2)
        scales = [(self._sizes[number] / self._taken[number]) ** 0.5 for number in there]
        sample *= np.repeat(scales, [self._taken[number] * self._widths[number] for number in there])
        starts = [self._starts[number] for number in there]
        squares = np.add.reduceat(sample * sample, starts, axis=1)  # per checkpoint and tensor
        of_average = np.add.reduceat(combine(self.weights, sample) ** 2, starts, axis=1)
        self.spreads[:, there] = np.maximum(combine(self.weights, squares) - of_average, 0)
        points = self.points(sample)
        return np.asarray(points @ points.T)


def _share_out(plan: Plan, looked_at: list[bool]) -> list[int]:
    """Return how many elements of each tensor are taken: by its size, at least one, at most all."""
    sizes = [t.elements if used else 0 for t, used in zip(plan.tensors, looked_at, strict=True)]
    whole = max(sum(sizes), 1)
    most = min(_MOST_TAKEN, _SAMPLE_BYTES // (8 * len(plan.used)))
    return [min(size, max(1, round(most * size / whole))) if size else 0 for size in sizes]


def _pick(sizes: Indices, taken: Indices) -> Indices:
    """Return the elements that are taken, tensor by tensor: of each of its strata one, at a place drawn by a hash.

    The hash is splitmix64 of the number of the element in the sample (Steele et al. 2014, figure 16).
    """
    numbers = np.arange(taken.sum())
    within = numbers - np.repeat(np.cumsum(taken) - taken, taken)
    size, count = np.repeat(sizes, taken), np.repeat(taken, taken)
    low, high = within * size // np.maximum(count, 1), (within + 1) * size // np.maximum(count, 1)
    mixed = (numbers.astype(np.uint64) + np.uint64(_SEED + 1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    drawn = (mixed ^ (mixed >> np.uint64(31))) % np.maximum(high - low, 1).astype(np.uint64)
    return np.asarray(low + drawn.astype(np.int64))


class _Taken(View):
    """Takes the sampled elements of a block."""

    __slots__ = ("_columns", "_picked", "_plain")

    def __init__(self, picked: Indices, columns: Float64, width: int) -> None:
        self._picked = picked
        self._columns = columns
        self._plain = width == 1

    def see(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Decode the sampled elements alone."""
        if self._plain and dtype.itemsize > 1:
            self._columns[row] = raw.view(NUMPY[dtype.name])[self._picked]
        else:
            taken = raw.view(_WORDS[dtype.itemsize])[self._picked]
            decode(taken.view(np.uint8), dtype, self._columns[row])
