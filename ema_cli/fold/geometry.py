"""Look at the checkpoints while they are folded, so that their distances are known without another read.

    sample   a fixed, seeded choice of elements, the same for any block size: every tensor is cut into equal strata, and
             one element of each is taken, so that a sum over the sample times elements/taken estimates the sum over all
    full     all elements: sums are kept, not elements; their last digits may depend on the order of the threads

Everything is measured from the last checkpoint, which keeps the digits of checkpoints that lie close together.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.decode import NUMPY, Bytes, Float64, components, decode
from ema_cli.fold.schedule import Block
from ema_cli.options import GeometryMode
from ema_cli.records import Action, Plan, PlannedTensor

_SAMPLE_BYTES = 8_000_000
"""Of all numbers in the sample together, unless there are more tensors than that."""
_MOST_TAKEN = 1 << 14
"""Elements of the sample, per checkpoint."""
_MOST_PLACED = 128
"""Checkpoints whose distances are told: of more, these many at even distances, the first and the last among them."""
_SEED = 0
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Indices = NDArray[np.int64]


class View(ABC):
    """One block of all checkpoints, as it passes by."""

    __slots__ = ()

    @abstractmethod
    def see(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Look at the block of the checkpoint that is read as number ``row``."""

    def close(self) -> None:
        """Say that all checkpoints have passed."""


class Geometry(ABC):
    """What is gathered for the geometry of a run; shared by all workers."""

    def __init__(self, plan: Plan) -> None:
        self.looked_at = [_counts(tensor) for tensor in plan.tensors]
        """Per tensor, whether it takes part: averaged, not empty, and not the same as an earlier one."""
        shares = np.array([output.weighting.weights for output in plan.outputs])
        self.weights: Float64 = shares[:, plan.used]  # (averages, checkpoints read)
        count = len(plan.used)
        self.placed: Indices = np.unique(np.linspace(0, count - 1, min(count, _MOST_PLACED)).round().astype(np.int64))
        """The checkpoints, counted among those read, whose places are told."""
        self.spreads = np.zeros((len(plan.outputs), len(plan.tensors)))
        """``sum_i w_i ||theta_i - average||^2`` per average and tensor."""

    @property
    @abstractmethod
    def sampled_fraction(self) -> float:
        """The part of all elements that was looked at."""

    @abstractmethod
    def view(self, block: Block, count: int) -> View | None:
        """Return what looks at a block of ``count`` real numbers per checkpoint, ``None`` if nothing does."""

    @abstractmethod
    def gram(self) -> Float64:
        """Return the inner products of the placed checkpoints, then of the averages, measured from the last."""

    def points(self, from_last: Float64) -> Float64:
        """Return the rows of the placed checkpoints and of the averages, given those of all checkpoints read."""
        return np.concatenate((from_last[self.placed], self.weights @ from_last))


def make_geometry(mode: GeometryMode, plan: Plan) -> Geometry | None:
    """Return what ``--geometry`` asks for; a single checkpoint has none."""
    if mode == "none" or len(plan.used) == 1:
        return None
    return FullGeometry(plan) if mode == "full" else SampledGeometry(plan)


def _counts(tensor: PlannedTensor) -> bool:
    return tensor.action is Action.AVERAGED and tensor.tied_to is None and tensor.elements > 0


def spread(from_last: Float64, weights: Float64) -> Float64:
    """Return ``sum_i w_i |x_i - average|^2`` for rows x_i that were measured from the last, per average."""
    squares = np.vecdot(from_last, from_last)
    average = weights @ from_last
    return np.asarray(np.maximum(weights @ squares - np.vecdot(average, average), 0))


class SampledGeometry(Geometry):
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
        of_average = np.add.reduceat((self.weights @ sample) ** 2, starts, axis=1)
        self.spreads[:, there] = np.maximum(self.weights @ squares - of_average, 0)
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


class FullGeometry(Geometry):
    """Adds up the inner products of all elements."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._gram = np.zeros((len(self.placed) + len(self.weights),) * 2)
        self._rows = len(plan.used)
        self._lock = threading.Lock()

    @property
    def sampled_fraction(self) -> float:
        """All of them."""
        return 1.0

    def view(self, block: Block, count: int) -> View | None:
        """Return what holds the block of every checkpoint."""
        if not self.looked_at[block.number] or not count:
            return None
        return _Whole(self, block.number, np.empty((self._rows, count)))

    def add(self, number: int, from_last: Float64) -> None:
        """Add one block of a tensor."""
        points, spreads = self.points(from_last), spread(from_last, self.weights)
        products = points @ points.T
        with self._lock:
            self._gram += products
            self.spreads[:, number] += spreads

    def gram(self) -> Float64:
        """Return what was added up."""
        return self._gram


class _Whole(View):
    """Holds a block of every checkpoint until all have passed."""

    def __init__(self, geometry: FullGeometry, number: int, rows: Float64) -> None:
        self._geometry = geometry
        self._number = number
        self._rows = rows

    def see(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Decode all elements."""
        decode(raw, dtype, self._rows[row])

    def close(self) -> None:
        """Measure from the last, and add."""
        self._rows -= self._rows[-1].copy()
        self._geometry.add(self._number, self._rows)
