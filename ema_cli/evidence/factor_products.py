"""How far the product of averaged LoRA factors is from the average of their products, measured on parts of some layers.

For the rows I of B and the columns J of A, ``B[I] A[J]`` is that part of the update ``B A``, whatever its rank. So both
sides are computed exactly on the part, checkpoint by checkpoint, in memory that depends on neither the model nor the
number of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ema_cli.fold.conversion import Float64, numbers_in
from ema_cli.planning.lora_pairs import FactorPair
from ema_cli.record import record
from ema_cli.records.plan import Plan, PlannedTensor
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_block

_MOST_ROWS = 256
"""Rows of B, and columns of A."""
_WHOLE_BYTES = 1 << 20
"""A factor of at most this size is read in one piece."""


@record
class MeasuredPair:
    """A pair of factors whose updates are compared."""

    pair: FactorPair
    scales: Sequence[float]
    """The scale of the update in each checkpoint."""
    scale_is_averaged: bool
    """Whether the output has the average of the scales; otherwise it has that of the last checkpoint."""

    def output_scale(self, weights: Sequence[float]) -> float:
        """Return the scale that the update has in an average."""
        if self.scale_is_averaged:
            return math.fsum(w * scale for w, scale in zip(weights, self.scales, strict=True))
        return self.scales[-1]


def relative_difference(plan: Plan, measured: Sequence[MeasuredPair], weights: Sequence[float]) -> float:
    """Return ``||s mean(B) mean(A) - mean(s_i B_i A_i)|| / ||mean(s_i B_i A_i)||`` over all pairs; 0 if they are zero.

    Args:
        plan: that averages the factors one by one.
        measured: the pairs.
        weights: of the average, one per checkpoint.

    Raises:
        InputChanged: a factor cannot be read.

    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    difference, whole = 0.0, 0.0
    with np.errstate(all="ignore"):
        for one in measured:
            product_of_means, mean_of_products = _both(plan, one, tensors, weights)
            difference += float(np.sum((product_of_means - mean_of_products) ** 2))
            whole += float(np.sum(mean_of_products**2))
    ratio = math.sqrt(difference / whole) if whole > 0 else 0.0
    return ratio if math.isfinite(ratio) else 0.0


def _both(
    plan: Plan, measured: MeasuredPair, tensors: Mapping[str, PlannedTensor], weights: Sequence[float]
) -> tuple[Float64, Float64]:
    """Return the part of ``s mean(B) mean(A)`` and of ``mean(s_i B_i A_i)``: (rows, columns) float64 each."""
    pair = measured.pair
    up, down = tensors[pair.up], tensors[pair.down]
    mean_b, mean_a, mean = np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))
    for i in plan.used:
        if weights[i]:
            b = _part(plan.extent(up, i), pair.rank_axis(up.name))
            a = _part(plan.extent(down, i), pair.rank_axis(down.name))
            mean_b, mean_a = mean_b + weights[i] * b, mean_a + weights[i] * a
            mean = mean + weights[i] * measured.scales[i] * (b @ a.T)
    return measured.output_scale(weights) * (mean_b @ mean_a.T), mean


def _part(extent: Located, rank_axis: int) -> Float64:
    """Return some rows of a factor: (rows, rank) float64, from the middle."""
    layout = extent.layout
    rank = layout.shape[rank_axis]
    size = layout.elements // rank
    count = min(size, _MOST_ROWS)
    begin = (size - count) // 2
    if rank_axis == 1:
        return _read(extent, begin * rank, count * rank).reshape(count, rank)
    if layout.nbytes <= _WHOLE_BYTES:
        return _read(extent, 0, layout.elements).reshape(rank, size)[:, begin : begin + count].T
    return np.stack([_read(extent, row * size + begin, count) for row in range(rank)], axis=1)


def _read(extent: Located, start: int, count: int) -> Float64:
    return numbers_in(read_block(extent, start, count), extent.layout.dtype)
