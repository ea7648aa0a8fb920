"""The chunks that a tensor is written in: rows that follow each other, of at most 32 MiB.

``dcp.load`` reads a chunk whole, even if a rank needs one row of it. With one chunk per tensor, 1,000 ranks that have
a row each of a tensor of 1 GB would read 1 TB. Each axis is cut as ``torch.chunk`` cuts it, into a power of two, so
ranks that are a power of two read no chunk in vain, or share one. A chunk is also one range of the tensor's bytes, and
too small for the 64-bit fields of a zip record.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ema_cli.formats.dcp.saved_items import Sizes

MOST_BYTES = 1 << 25


def cut(shape: Sizes, itemsize: int) -> Iterator[tuple[Sizes, Sizes]]:
    """Yield origin and shape of each chunk of a tensor, in the order of its bytes."""
    nbytes = prod(shape) * itemsize
    if nbytes <= MOST_BYTES:
        yield (0,) * len(shape), shape
        return
    axis = next(axis for axis, size in enumerate(shape) if size > 1)
    size, inner = shape[axis], shape[axis + 1 :]
    for begin, length in _cut_axis(size, nbytes // size):
        for origin, sizes in cut(inner, itemsize) if length == 1 else [((0,) * len(inner), inner)]:
            yield (*(0,) * axis, begin, *origin), (*(1,) * axis, length, *sizes)


def _cut_axis(size: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield begin and length of each piece of an axis; a row that is too large is a piece."""
    pieces = 1
    while pieces < size and -(-size // pieces) * row_bytes > MOST_BYTES:
        pieces *= 2
    step = -(-size // pieces)
    for begin in range(0, size, step):
        yield begin, min(step, size - begin)
