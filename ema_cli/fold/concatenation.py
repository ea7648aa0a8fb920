"""Where the elements of a concatenated tensor are in its pieces.

In C order, a tensor that is concatenated along an axis is rows of runs: each row has a run of every piece, one after
the other. So any range of its elements needs at most three contiguous ranges of each piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ema_cli.fold.conversion import Float64
from ema_cli.record import record
from ema_cli.records.plan import Plan, PlannedTensor
from ema_cli.storage.strided_read import flat_boxes


@record
class PieceRun:
    """Consecutive elements of one piece, and their place in a block."""

    row: int
    """Number of the piece."""
    start: int
    """First element, in the piece."""
    count: int
    begin: int
    """Where the box of the block that they are in begins, in elements."""
    height: int
    """Rows of the box."""
    width: int
    """Elements of a row of the box, of all pieces."""
    low: int
    """Where they begin in each of the rows."""

    def place(self, block: Float64) -> Float64:
        """Return the view of a block that these elements fill: (height, count / height)."""
        box = block[self.begin : self.begin + self.height * self.width].reshape(self.height, self.width)
        return box[:, self.low : self.low + self.count // self.height]


def piece_shapes(plan: Plan, tensor: PlannedTensor) -> list[tuple[int, ...]]:
    """Return the shapes of the pieces of a tensor."""
    return [plan.layout(tensor, i).shape for i in plan.readers(tensor)]


def runs_in(shapes: Sequence[tuple[int, ...]], axis: int, start: int, count: int) -> Iterator[PieceRun]:
    """Yield the runs of ``count`` elements of the whole from ``start`` on; those of one piece in ascending order."""
    height = math.prod(shapes[0][:axis])
    widths = [math.prod(shape[axis:]) for shape in shapes]
    begin = 0
    for (top, bottom), (left, right) in flat_boxes((height, sum(widths)), start, start + count):
        low = 0
        for row, width in enumerate(widths):
            first, last = max(left, low), min(right, low + width)
            if first < last:
                yield PieceRun(
                    row=row,
                    start=top * width + first - low,
                    count=(bottom - top) * (last - first),
                    begin=begin,
                    height=bottom - top,
                    width=right - left,
                    low=first - left,
                )
            low += width
        begin += (bottom - top) * (right - left)
