"""A lane computes weighted sums of blocks. There are two for the CPU, here, and one for GPUs, in ``cuda``.

All do the same operations. Per element and average: upcast to float64, multiply by the weight, add to the accumulator,
as separate IEEE 754 operations in checkpoint order; the first product replaces the sum. So all give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import LARGEST, Bytes, Float64, Rounded, components, decode
from ema_cli.fold.geometry.sample import BlockSampler
from ema_cli.fold.kernel import CODES, kernel
from ema_cli.fold.statistics import add_rows
from ema_cli.records.plan import ROW_ELEMENTS

_RAW_BUFFERS = 4
"""Blocks of checkpoints that are added together if there are several averages: the sums stay in the first cache."""
MOST_CHECKPOINTS = 16
"""Checkpoints that are read from files with one call."""
_READ_BYTES = 1 << 20
"""Bytes of all checkpoints that are read before they are added: large reads are cheap, small ones stay in a cache."""
_NOTHING = np.empty(0, dtype=np.int64)


class FinishedBlock:
    """What the kernel computes of a block of all averages.

    Args:
        averages: number of averages.
        count: numbers of the block.
        dtype: of the output.
        memory: for the numbers in this type.

    """

    def __init__(self, averages: int, count: int, dtype: DType, memory: Bytes) -> None:
        self._dtype = dtype
        self._fits = bytearray(averages)
        nbytes = count * dtype.itemsize // components(dtype)
        self._rounded = memory[: averages * nbytes].reshape(averages, nbytes)
        self._squares = np.empty((averages, 3, -(-count // ROW_ELEMENTS)))

    def outputs(self) -> tuple[Float64, Bytes, bytearray, int, float]:
        """Return the arguments of the kernel."""
        return self._squares, self._rounded, self._fits, CODES[self._dtype.name], LARGEST[self._dtype.name]

    def sums_of_squares(self, in_block: int) -> Float64:
        """Return the sums of ``statistics.squares`` of blocks of so many rows: (averages, blocks, 3, 2) float64."""
        averages, sums, rows = self._squares.shape
        of_blocks = add_rows(self._squares.reshape(averages * sums, rows), in_block)
        return of_blocks.reshape(averages, sums, -1, 2).swapaxes(1, 2)

    @property
    def fits(self) -> bool:
        """Whether all numbers of all averages are finite, and below the largest number of the type."""
        return all(self._fits)

    def rounded(self) -> list[Rounded]:
        """Return the averages in the type of the output."""
        return [Rounded(raw, fits=bool(fits)) for raw, fits in zip(self._rounded, self._fits, strict=True)]


class Lane(Protocol):
    """What one worker thread computes with. Not shared between threads."""

    def start(self, count: int) -> None:
        """Begin a block of ``count`` numbers with empty sums."""

    def buffer(self, nbytes: int) -> Bytes:
        """Return host memory to read the next checkpoint's block into, valid until the next call."""

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Add ``weights[k]`` times the numbers in ``raw`` to sum k. ``raw`` must come from ``buffer``."""

    def sums(self) -> Sequence[Float64]:
        """Return the sums, one per average, on the host. Valid until the next ``start``."""


class CompiledLane:
    """Weighted sums with the compiled kernel; see ``Lane``. It also reads files, without a call for each block."""

    def __init__(self, *, block_elements: int, averages: int) -> None:
        assert kernel is not None  # noqa: S101 - see cpu_lane
        least = MOST_CHECKPOINTS * 8 * ROW_ELEMENTS // _RAW_BUFFERS
        self._raw = np.empty((_RAW_BUFFERS, max(8 * block_elements, least)), dtype=np.uint8)
        self._memory = self._raw.reshape(-1)[:_READ_BYTES]
        self._most_waiting = _RAW_BUFFERS if averages > 1 else 1
        self._sums = np.empty((averages, block_elements))
        self._started = bytearray(averages)
        self._waiting: list[tuple[Bytes, int, Sequence[float]]] = []
        self._count = 0

    def start(self, count: int) -> None:
        """Begin a block."""
        self._count = count
        self._started = bytearray(len(self._started))

    def buffer(self, nbytes: int) -> Bytes:
        """Return the next read buffer, once those that wait in all of them were added."""
        if len(self._waiting) == self._most_waiting:
            self._add_waiting()
        return self._raw[len(self._waiting), :nbytes]

    def add(self, raw: Bytes, dtype: DType, weights: Sequence[float]) -> None:
        """Let the block wait for others, if there are several averages."""
        self._waiting.append((raw, CODES[dtype.name], weights))
        if self._most_waiting == 1:
            self._add_waiting()

    def add_files(
        self,
        places: Sequence[tuple[int, int, DType]],
        weights: Float64,
        sampler: BlockSampler | None,
        row: int,
        finished: FinishedBlock | None,
    ) -> list[int]:
        """Read a block of some checkpoints and add it; return its CRC-32s, or fewer if it cannot be read to its end.

        Args:
            places: of the block in each checkpoint, the open file, the offset in bytes and the type.
            weights: (checkpoints, averages) float64.
            sampler: takes elements of the block, if there are any to be taken.
            row: of the first checkpoint, for the sampler.
            finished: is filled, if these are the last checkpoints. The block may be longer than the sums if they are
                the first, too.

        """
        assert kernel is not None  # noqa: S101 - see cpu_lane
        crcs = np.empty(len(places), dtype=np.uint32)
        blocks = np.array([(descriptor, offset, CODES[dtype.name]) for descriptor, offset, dtype in places])
        numbers = _NOTHING if sampler is None else sampler.numbers
        rows = None if sampler is None else sampler.columns[row : row + len(places)]
        outputs = (_NOTHING, _NOTHING, bytearray(), 0, 0.0) if finished is None else finished.outputs()
        given = self._sums, self._count, blocks, weights, self._started, self._memory
        done = kernel.average(*given, crcs, numbers, rows, *outputs)
        found: list[int] = crcs[:done].tolist()
        return found

    def _add_waiting(self) -> None:
        assert kernel is not None  # noqa: S101 - see cpu_lane
        if self._waiting:
            raws, codes, weights = zip(*self._waiting, strict=True)
            self._waiting.clear()
            kernel.fold(self._sums, self._count, raws, codes, np.array(weights), self._started)

    def sums(self) -> Sequence[Float64]:
        """Return the sums."""
        self._add_waiting()
        return [total[: self._count] for total in self._sums]


class NumpyLane:
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


def cpu_lane(*, block_elements: int, averages: int) -> Lane:
    """Return the fastest lane for the CPU."""
    lane = NumpyLane if kernel is None else CompiledLane
    return lane(block_elements=block_elements, averages=averages)
