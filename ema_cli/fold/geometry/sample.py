"""A sample of the elements of every checkpoint, taken while the checkpoints are folded: no extra read.

Every tensor is cut into equal strata, and one element of each is taken, so that a sum over the sample times
elements/taken estimates the sum over all elements. The choice is fixed and seeded, the same for any block size. Every
checkpoint is measured relative to the last, which keeps the digits of checkpoints that are close together.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import NUMPY_TYPES, Bytes, Float64, components, decode
from ema_cli.fold.schedule import Block
from ema_cli.fold.tensor_runs import TensorRun
from ema_cli.records.plan import Action, Plan, PlannedTensor

Indices = NDArray[np.int64]

_MOST_PLACED = 128
"""Distances are reported for at most this many checkpoints, evenly spaced, the first and the last among them."""
_SAMPLE_BYTES = 8_000_000
"""Size of the whole sample, unless there are more tensors than that has room for."""
_MOST_TAKEN = 1 << 14
"""Elements of the sample, per checkpoint."""
_SEED = 0
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class BlockSampler:
    """Takes the sampled elements of one block, checkpoint by checkpoint."""

    __slots__ = ("_picked", "_plain", "columns", "numbers")

    def __init__(self, picked: Indices, columns: Float64, width: int) -> None:
        self._picked = picked
        self._plain = width == 1
        self.columns = columns
        """(checkpoints, numbers) float64, to be filled."""
        self.numbers = picked if self._plain else (picked[:, None] * width + np.arange(width)).ravel()
        """Which numbers of the block are taken: of a complex element, two."""

    def take(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Decode the sampled elements of the checkpoint that is read as number ``row``, and no others."""
        if self._plain and dtype.itemsize > 1:
            self.columns[row] = raw.view(NUMPY_TYPES[dtype.name])[self._picked]
        else:
            taken = raw.view(_WORDS[dtype.itemsize])[self._picked]
            decode(taken.view(np.uint8), dtype, self.columns[row])


class GeometrySample:
    """The sampled elements of every checkpoint that is read; shared by all workers."""

    def __init__(self, plan: Plan) -> None:
        self.measured = [_is_measured(tensor) for tensor in plan.tensors]
        """Per tensor, whether it takes part: averaged, not empty, not tied to an earlier tensor."""
        shares = np.array([output.weighting.weights for output in plan.outputs])
        self.weights: Float64 = shares[:, plan.used]
        """(averages, checkpoints read) float64."""
        count = len(plan.used)
        places = np.linspace(0, count - 1, min(count, _MOST_PLACED)).round().astype(np.int64).tolist()
        self.placed: Indices = np.array(sorted(set(places)))  # np.unique imports numpy.ma, for masks that are not here
        """The checkpoints with reported distances, as numbers among the checkpoints that are read."""
        self.spreads = np.zeros((len(plan.outputs), len(plan.tensors)))
        """``sum_i w_i ||theta_i - average||^2``: (averages, tensors) float64, filled by ``gram``."""
        self._sizes = [tensor.elements for tensor in plan.tensors]
        self._widths = [components(tensor.dtype) for tensor in plan.tensors]
        self._taken = _share_out(plan, self.measured)
        self._first = [0, *accumulate(self._taken)]
        self._starts = [0, *accumulate(k * width for k, width in zip(self._taken, self._widths, strict=True))]
        self._picked = _pick(np.array(self._sizes), np.array(self._taken))
        self._sample = np.zeros((count, self._starts[-1]))

    @property
    def fraction(self) -> float:
        """Elements taken, relative to all elements that take part."""
        whole = sum(size for size, is_measured in zip(self._sizes, self.measured, strict=True) if is_measured)
        return sum(self._taken) / max(whole, 1)

    def picked(self, number: int) -> Indices:
        """Return the elements that are taken of a tensor, in ascending order: one per stratum."""
        return self._picked[self._first[number] : self._first[number + 1]]

    def sampler(self, block: Block) -> BlockSampler | None:
        """Return the sampler of a block; ``None`` if no element of the block is in the sample."""
        number = block.number
        low, high = 0, self._taken[number]
        picked = self.picked(number)
        if block.count < self._sizes[number]:
            low, high = np.searchsorted(picked, (block.start, block.start + block.count)).tolist()
            picked = picked[low:high] - block.start
        if low == high:
            return None
        start, width = self._starts[number], self._widths[number]
        return BlockSampler(picked, self._sample[:, start + low * width : start + high * width], width)

    def run_sampler(self, run: TensorRun) -> BlockSampler | None:
        """Return the sampler of a run of tensors; ``None`` if no element of the run is in the sample."""
        picked = self._picked[self._first[run.first] : self._first[run.stop]]
        taken, sizes = self._taken[run.first : run.stop], self._sizes[run.first : run.stop]
        if not len(picked):
            return None
        picked = picked + np.repeat(np.cumsum([0, *sizes[:-1]]), taken)
        return BlockSampler(picked, self._sample[:, self._starts[run.first] : self._starts[run.stop]], 1)

    def save(self, number: int) -> bytes:
        """Return the sampled numbers of a tensor, for a later run: float64, checkpoint by checkpoint."""
        return self._columns(number).tobytes()

    def restore(self, number: int, saved: bytes) -> None:
        """Put back the sampled numbers of a tensor that an earlier run saved."""
        columns = self._columns(number)
        columns[...] = np.frombuffer(saved).reshape(columns.shape)

    def merge(self, number: int, saved: bytes) -> None:
        """Add the sampled numbers of a tensor that another process saved, with zeros where it took none."""
        columns = self._columns(number)
        others = np.frombuffer(saved, dtype=np.uint64).reshape(columns.shape)
        columns[...] = (columns.view(np.uint64) | others).view(np.float64)

    def _columns(self, number: int) -> Float64:
        return self._sample[:, self._starts[number] : self._starts[number + 1]]

    def gram(self) -> Float64:
        """Return the inner products of the placed checkpoints, then of the averages, and fill ``spreads``.

        Call it once, when everything is folded: it rescales the sample in place.

        Returns:
            (placed + averages, placed + averages) float64, relative to the last checkpoint.

        """
        sample, last = self._sample, self._sample[-1].copy()
        unchanged = sample.view(np.uint64) == last.view(np.uint64)
        sample -= last
        sample[unchanged] = 0  # also where both are infinite or NaN
        present = [number for number, taken in enumerate(self._taken) if taken]
        if not present:
            return np.zeros((len(self.placed) + len(self.weights),) * 2)
        scales = [(self._sizes[number] / self._taken[number]) ** 0.5 for number in present]
        sample *= np.repeat(scales, [self._taken[number] * self._widths[number] for number in present])
        starts = [self._starts[number] for number in present]
        averages = _combine(self.weights, sample)
        squares = np.add.reduceat(sample * sample, starts, axis=1)  # (checkpoints, tensors)
        of_averages = np.add.reduceat(averages**2, starts, axis=1)
        self.spreads[:, present] = np.maximum(_combine(self.weights, squares) - of_averages, 0)
        points = np.concatenate((sample[self.placed], averages))
        return np.asarray(points @ points.T)


def _is_measured(tensor: PlannedTensor) -> bool:
    return tensor.action is Action.AVERAGED and tensor.tied_to is None and tensor.elements > 0


def _combine(weights: Float64, rows: Float64) -> Float64:
    """Return the weighted sums of the rows, one product per average: a joint product would round them differently."""
    return np.stack([of_average @ rows for of_average in weights])


def _share_out(plan: Plan, measured: list[bool]) -> list[int]:
    """Return how many elements are taken of each tensor: in proportion to its size, at least one, at most all."""
    sizes = [t.elements if is_measured else 0 for t, is_measured in zip(plan.tensors, measured, strict=True)]
    whole = max(sum(sizes), 1)
    most = min(_MOST_TAKEN, _SAMPLE_BYTES // (8 * len(plan.used)))
    return [min(size, max(1, round(most * size / whole))) if size else 0 for size in sizes]


def _pick(sizes: Indices, taken: Indices) -> Indices:
    """Return the elements that are taken, tensor by tensor: one of each stratum, at an index drawn by a hash.

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
