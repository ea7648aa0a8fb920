"""Look at the checkpoints while they are folded, so that their distances are known without another read.

Everything is measured from the last checkpoint, which keeps the digits of checkpoints that lie close together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.decode import Bytes, Float64
from ema_cli.fold.schedule import Block
from ema_cli.records.plan import Action, Plan, PlannedTensor

_MOST_PLACED = 128
"""Checkpoints whose distances are told: of more, these many at even distances, the first and the last among them."""

Indices = NDArray[np.int64]


class View(ABC):
    """One block of all checkpoints, as it passes by."""

    __slots__ = ()

    @abstractmethod
    def see(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Look at the block of the checkpoint that is read as number ``row``."""

    def close(self) -> None:
        """Say that all checkpoints have passed."""


class GeometryObserver(ABC):
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

    def taken_from(self, number: int) -> bytes:
        """Return what is kept of a tensor that was looked at, to be put back by a later run."""
        del number
        return b""

    def put_back(self, number: int, taken: bytes) -> None:
        """Take what an earlier run kept of a tensor, in place of looking at it."""

    @abstractmethod
    def gram(self) -> Float64:
        """Return the inner products of the placed checkpoints, then of the averages, measured from the last."""

    def points(self, from_last: Float64) -> Float64:
        """Return the rows of the placed checkpoints and of the averages, given those of all checkpoints read."""
        return np.concatenate((from_last[self.placed], combine(self.weights, from_last)))


def _counts(tensor: PlannedTensor) -> bool:
    return tensor.action is Action.AVERAGED and tensor.tied_to is None and tensor.elements > 0


def spread(from_last: Float64, weights: Float64) -> Float64:
    """Return ``sum_i w_i |x_i - average|^2`` for rows x_i that were measured from the last, per average."""
    squares = np.vecdot(from_last, from_last)
    average = combine(weights, from_last)
    return np.asarray(np.maximum(combine(weights, squares) - np.vecdot(average, average), 0))


def combine(weights: Float64, rows: Float64) -> Float64:
    """Return the weighted sums of the rows, each on its own: together, each would be rounded as the others say."""
    return np.stack([one @ rows for one in weights])
