"""A lane computes weighted sums of blocks. There is one for the CPU and one for GPUs; both do the same operations.

Per element and average: upcast to float64, multiply by the weight, add to the accumulator, as separate IEEE 754
operations in checkpoint order, the first product taking the place of the sum. So both lanes give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ema_cli.dtypes import DType
from ema_cli.fold.decode import Bytes, Float64


class Lane(Protocol):
    """What one worker thread computes with. Not shared between threads."""

    def start(self, count: int) -> None:
        """Begin a block of ``count`` numbers with empty sums."""

    def buffer(self, nbytes: int) -> Bytes:
        """Return host memory to read the next checkpoint's block into; reused from block to block."""

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Add ``weights[k]`` times the numbers in ``raw`` to sum k. ``raw`` is what ``buffer`` returned."""

    def sums(self) -> Sequence[Float64]:
        """Return the sums, one per average, on the host. Valid until the next ``start``."""
