"""A lane computes weighted sums of blocks. There is one for the CPU, here, and one for GPUs, in ``cuda``.

Both do the same operations. Per element and average: upcast to float64, multiply by the weight, add to the accumulator,
as separate IEEE 754 operations in checkpoint order; the first product replaces the sum. So both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import Bytes, Float64, decode


class Lane(Protocol):
    """What one worker thread computes with. Not shared between threads."""

    def start(self, count: int) -> None:
        """Begin a block of ``count`` numbers with empty sums."""

    def buffer(self, nbytes: int) -> Bytes:
        """Return host memory to read the next checkpoint's block into; reused from block to block."""

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Add ``weights[k]`` times the numbers in ``raw`` to sum k. ``raw`` must come from ``buffer``."""

    def sums(self) -> Sequence[Float64]:
        """Return the sums, one per average, on the host. Valid until the next ``start``."""


class CpuLane:
    """Weighted sums with numpy, in buffers that stay in the second-level cache; see ``Lane``."""

    def __init__(self, *, block_elements: int, averages: int) -> None:
        self._raw = np.empty(block_elements * 8, dtype=np.uint8)
        self._upcast = np.empty(block_elements)
        self._product = np.empty(block_elements if averages > 1 else 0)
        self._sums = np.empty((averages, block_elements))
        self._empty = [True] * averages
        self._count = 0

    def start(self, count: int) -> None:
        """Begin a block."""
        self._count = count
        self._empty = [True] * len(self._empty)

    def buffer(self, nbytes: int) -> Bytes:
        """Return the one read buffer."""
        return self._raw[:nbytes]

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Upcast once, then multiply and add for each average. A weight of zero adds nothing, not even a zero."""
        upcast = self._upcast[: self._count]
        decode(raw, dtype, upcast)
        for k, weight in enumerate(weights):
            if weight == 0:
                continue
            total = self._sums[k, : self._count]
            if self._empty[k]:
                np.multiply(upcast, weight, out=total)
                self._empty[k] = False
            else:
                in_place = k == len(weights) - 1  # the last average may overwrite the upcast numbers
                product = upcast if in_place else self._product[: self._count]
                np.add(total, np.multiply(upcast, weight, out=product), out=total)

    def sums(self) -> Sequence[Float64]:
        """Return the sums."""
        return [total[: self._count] for total in self._sums]
