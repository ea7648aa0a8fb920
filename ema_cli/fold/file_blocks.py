"""Blocks that the compiled kernel reads itself, from files: with one call for up to 16 checkpoints.

Input -> output: where a tensor is in its checkpoints, and one or more blocks of it -> ``AveragedBlock``, or ``None``
where they must be read block by block and piece by piece: they are not a contiguous part of a file everywhere, a file
ends early, or a number is not finite or too large for the type of the output. Several blocks are averaged together only
with one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ema_cli.fold.conversion import Float64, Rounded, components
from ema_cli.fold.geometry.sample import BlockSampler
from ema_cli.fold.lanes import MOST_CHECKPOINTS, CompiledLane, FinishedBlock
from ema_cli.fold.schedule import TOGETHER_BYTES, Block, block_elements
from ema_cli.fold.state import FoldState
from ema_cli.records.plan import ROW_ELEMENTS
from ema_cli.storage.extents import Chain, Extent, Located
from ema_cli.storage.source import FileSource, open_together


class AveragedBlock(NamedTuple):
    """One or more blocks of all averages."""

    crcs: list[int]
    """CRC-32 of the blocks in each checkpoint."""
    rounded: Sequence[Rounded]
    """Per average."""
    squares: Float64
    """(averages, blocks, 3, 2) float64; see ``ema_cli.fold.statistics.squares``."""
    totals: Sequence[Float64] = ()
    """Before rounding: (numbers,) float64 per average. Only of one block that does not fit into the type everywhere."""


class _Place(NamedTuple):
    """Where a tensor is in the file of a checkpoint."""

    extent: Extent
    """The tensor, or the link of it that holds the block."""
    source: FileSource
    begin: int
    """Byte of the file where the tensor would begin if all of it were stored as this block is."""


class FileBlocks:
    """Averages blocks in the lane of one worker."""

    def __init__(self, state: FoldState, lane: CompiledLane) -> None:
        self._state = state
        self._lane = lane
        self._extents: Sequence[tuple[int, Located]] = ()
        self._has_links = False
        self._files: list[_Place] = []
        self._weights: Float64 = np.empty(0)
        averages, elements = len(state.sinks), state.plan.buffers.block_elements
        self._memory = np.empty(elements * max(8 * averages, TOGETHER_BYTES), dtype=np.uint8)
        """For the rounded averages."""

    def begin(self, extents: Sequence[tuple[int, Located]]) -> None:
        """Begin a tensor, which is in these checkpoints."""
        self._extents = extents
        self._has_links = any(isinstance(extent, Chain) for _, extent in extents)
        self._files = [] if self._has_links else self._locate(0, 0)
        self._weights = np.array([self._state.weights[i] for i, _ in extents])

    def _locate(self, start: int, count: int) -> list[_Place]:
        """Return where a block is in each checkpoint; nothing unless it is contiguous in a local file in all."""
        places: list[_Place] = []
        for _, located in self._extents:
            extent, shift = _one_link(located, start, count) if isinstance(located, Chain) else (located, 0)
            if not isinstance(extent, Extent) or extent.layout.strides is not None:
                return []
            if not isinstance(extent.source, FileSource):
                return []
            places.append(_Place(extent, extent.source, extent.offset - shift * extent.layout.dtype.itemsize))
        return places

    def average(self, block: Block, sampler: BlockSampler | None) -> AveragedBlock | None:
        """Return the average of blocks of the tensor, valid until the next call, unless they must be read otherwise."""
        if self._has_links:
            self._files = self._locate(block.start, block.count)
        if not self._files:
            return None
        tensor = self._state.plan.tensors[block.number]
        count = block.count * components(tensor.dtype)
        finished = FinishedBlock(len(self._state.sinks), count, tensor.dtype, self._memory)
        crcs: list[int] = []
        self._lane.start(count)
        while len(crcs) < len(self._files):
            self._state.raise_if_stopping()
            expected = self._read(block, len(crcs), sampler, finished, crcs)
            if len(crcs) < expected:
                return None
        if not finished.fits:
            return None
        for (extent, _, begin), crc in zip(self._files, crcs, strict=True):
            size = extent.layout.dtype.itemsize
            self._state.integrity.add_crc(extent, begin + block.start * size, block.count * size, crc)
        in_block = -(-block_elements(self._state.plan, tensor) * components(tensor.dtype) // ROW_ELEMENTS)
        return AveragedBlock(crcs, finished.rounded(), finished.sums_of_squares(in_block))

    def _read(
        self, block: Block, row: int, sampler: BlockSampler | None, finished: FinishedBlock, crcs: list[int]
    ) -> int:
        """Read and add the block in some checkpoints from ``row`` on; return the row of the next checkpoint.

        Nothing is read of several blocks that need more than this call.
        """
        files = self._files[row : row + MOST_CHECKPOINTS]
        with open_together([source for _, source, _ in files]) as descriptors:
            places = [
                (descriptor, begin + block.start * extent.layout.dtype.itemsize, extent.layout.dtype)
                for descriptor, (extent, _, begin) in zip(descriptors, files, strict=False)
            ]
            stop = row + len(places)
            if block.parts > 1 and len(places) < len(self._files):
                return len(self._files)
            last = finished if stop == len(self._files) else None
            crcs += self._lane.add_files(places, self._weights[row:stop], sampler, row, last)
        return stop


def _one_link(chain: Chain, start: int, count: int) -> tuple[Located, int]:
    """Return the link that holds a whole block, and the first element of the link; of several links, the tensor."""
    number = chain.link_at(start)
    whole = start + count <= chain.begin(number + 1)
    return (chain.link(number), chain.begin(number)) if whole else (chain, 0)
