"""Which elements of the checkpoints are sampled: the same few pieces of tensors in all of them.

Input -> output: a plan -> at most 32 pieces of 4 KiB, 8 if there are 128 checkpoints, 6 if one is in a store; a small
model is taken whole. A piece is contiguous in storage, so it is one read or one request.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ema_cli.naming import is_batch_norm_statistic
from ema_cli.record import record
from ema_cli.records.plan import Action, Plan, PlannedTensor
from ema_cli.storage.extents import Extent, Located, Mosaic, TensorLayout, span
from ema_cli.storage.strided_read import announce, read_block

PIECE_BYTES = 1 << 12
MOST_PIECES = 32
_FEWEST_PIECES = 8
_REMOTE_PIECES = 6
"""Of a checkpoint in a store, each of which is one request; two more are left for integers."""
_MOST_READS = 1024
"""Of all checkpoints together, so that many checkpoints do not take longer than a few."""


@record
class SampledPiece:
    """A run of elements of one tensor, in the order of their storage; of a chain of links, in its own order."""

    number: int
    """Position of the tensor in the plan."""
    part: int
    """The rectangle of the tensor, if it consists of several."""
    start: int
    count: int

    def locate(self, plan: Plan, i: int) -> Located:
        """Return the tensor in checkpoint ``i``, or the rectangle of it, that the piece belongs to."""
        found = plan.extent(plan.tensors[self.number], i)
        return found.tiles[self.part][1] if isinstance(found, Mosaic) else found

    def announce(self, plan: Plan, i: int) -> None:
        """Announce the read of the piece in checkpoint ``i``."""
        extent = self.locate(plan, i)
        if not isinstance(extent, Extent):
            announce(extent, self.start, self.count)
            return
        size = extent.layout.dtype.itemsize
        extent.source.will_need(extent.offset + self.start * size, self.count * size)

    def read(self, plan: Plan, i: int) -> NDArray[np.uint8]:
        """Return the bytes of the piece in checkpoint ``i``.

        Raises:
            InputChanged: the file ends early, or cannot be read.

        """
        extent = self.locate(plan, i)
        if not isinstance(extent, Extent):
            return read_block(extent, self.start, self.count)
        size = extent.layout.dtype.itemsize
        raw = np.empty(self.count * size, dtype=np.uint8)
        extent.source.read_into(extent.offset + self.start * size, raw.data)
        return raw


@record
class _Stretch:
    """A tensor, or a rectangle of one, whose elements are stored without gaps and in the same order everywhere."""

    number: int
    part: int
    elements: int
    itemsize: int

    def piece(self, start: int, count: int) -> SampledPiece:
        return SampledPiece(number=self.number, part=self.part, start=start, count=min(count, self.elements - start))

    @property
    def count(self) -> int:
        """Elements of a piece."""
        return min(self.elements, max(1, PIECE_BYTES // self.itemsize))

    def cut(self) -> Iterator[SampledPiece]:
        return (self.piece(start, self.count) for start in range(0, self.elements, self.count))


def is_remote(plan: Plan, rows: Sequence[int]) -> bool:
    """Whether any of the checkpoints is in a store, where every read is a request."""
    checkpoints = plan.checkpoints
    return any(source.is_remote for i in rows for source in checkpoints[i].index.sources)


def choose_pieces(plan: Plan, rows: Sequence[int]) -> list[SampledPiece]:
    """Return the pieces to read of each of the checkpoints ``rows``, in the order of the plan's tensors."""
    stretches = list(_stretches(plan, rows))
    remote = is_remote(plan, rows)
    most = _REMOTE_PIECES if remote else max(_FEWEST_PIECES, min(MOST_PIECES, _MOST_READS // len(rows)))
    most_whole = 1 if remote else 4 * most
    size = sum(stretch.elements * stretch.itemsize for stretch in stretches)
    if size <= most * PIECE_BYTES and len(stretches) <= most_whole:
        return [piece for stretch in stretches for piece in stretch.cut()]
    return list(_spread(stretches, most))


def first_pieces(plan: Plan, rows: Sequence[int], most: int) -> list[SampledPiece]:
    """Return the beginning of every tensor; nothing if there are more than ``most``, or if they are in a store."""
    stretches = list(_stretches(plan, rows))
    if len(stretches) > most or is_remote(plan, rows):
        return []
    return [one.piece(0, one.count) for one in stretches]


def _stretches(plan: Plan, rows: Sequence[int]) -> Iterator[_Stretch]:
    """Yield what can be sampled: tensors that are averaged or joined, tied ones once, no statistics of BatchNorm."""
    one_of_each = list({plan.layout_numbers[i]: i for i in rows}.values())
    for number, tensor in enumerate(plan.tensors):
        if tensor.tied_to is not None or is_batch_norm_statistic(tensor.name) or not _is_in_all(plan, tensor, rows):
            continue
        layouts = [plan.layout(tensor, i) for i in one_of_each]
        first, *others = layouts
        if any((one.shape, one.strides, one.parts) != (first.shape, first.strides, first.parts) for one in others):
            continue
        itemsize = max(layout.dtype.itemsize for layout in layouts)
        for part, elements in enumerate(_dense_elements(first)):
            if elements:
                yield _Stretch(number=number, part=part, elements=elements, itemsize=itemsize)


def _is_in_all(plan: Plan, tensor: PlannedTensor, rows: Sequence[int]) -> bool:
    """Whether the output has numbers of a tensor from all of the checkpoints ``rows``."""
    if tensor.action is Action.CONCATENATED:
        return set(plan.readers(tensor)).issuperset(rows)
    return tensor.action is Action.AVERAGED


def _dense_elements(layout: TensorLayout) -> list[int]:
    """Return the number of elements of each rectangle, 0 for one that is stored with gaps."""
    forms = [(part.shape, part.strides) for part in layout.parts] or [(layout.shape, layout.strides)]
    return [
        math.prod(shape) if strides is None or span(shape, strides) == math.prod(shape) else 0
        for shape, strides in forms
    ]


def _spread(stretches: Sequence[_Stretch], most: int) -> Iterator[SampledPiece]:
    """Yield ``most`` pieces, or fewer, at equal distances along all tensors, where each counts by its root of size.

    The root leaves some pieces for the small tensors beside a large embedding.
    """
    ends = list(accumulate(math.sqrt(stretch.elements) for stretch in stretches))
    marks = [(k + 0.5) * ends[-1] / most for k in range(most)] if ends else []
    for stretch, begin, end in zip(stretches, [0.0, *ends], ends, strict=False):
        pieces = min(bisect_left(marks, end) - bisect_left(marks, begin), stretch.elements // stretch.count)
        for k in range(pieces):
            low, high = k * stretch.elements // pieces, (k + 1) * stretch.elements // pieces
            yield stretch.piece(low + (high - low - stretch.count) // 2, stretch.count)
