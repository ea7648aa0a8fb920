"""Read a range of elements of a tensor, in C order, whatever its strides. Memory is bounded by the range.

Input -> output: an extent and the range ``[start, start + count)`` of its flattened elements -> raw bytes.
A contiguous tensor is one read. For any other tensor the range is split into boxes (rectangles of the index space). A
box is read in one piece if its bytes are close together, else it is halved along the dimension with the largest span.
If a tensor has several parts, each part gives its share of a box; of a chain of links, each link is one read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import EllipsisType
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ema_cli.storage.extents import Chain, Extent, Located, Mosaic, contiguous_strides, span

Bytes = NDArray[np.uint8]

_SLACK = 4
"""A box is read in one piece if it spans at most this many times its elements: a gap is cheaper than a second read."""
_ALWAYS = 1 << 14
"""Elements of storage that are read in one piece even if few of them are wanted."""

Box = tuple[tuple[int, int], ...]
"""``(start, stop)`` per dimension."""
Thing = TypeVar("Thing")
Tile = tuple[tuple[int, ...], tuple[int, ...], Thing]
"""A rectangle of a tensor: the index of its first element, its shape, and what is there."""
OnRead = Callable[[Extent, int, Bytes], None]
"""Called with all bytes that are read: the extent, the offset in the source, the bytes."""


def ignore(*_: object) -> None:
    """Do nothing with the bytes that are read."""


def read_elements(extent: Located, start: int, out: Bytes, on_read: OnRead = ignore) -> None:
    """Fill ``out`` with the elements from flat index ``start`` on (``len(out)`` is a multiple of the item size).

    Args:
        extent: of the tensor.
        start: the first element.
        out: is filled.
        on_read: called with the bytes in the order of the source; if strides are large, some are read twice.

    """
    layout = extent.layout
    if isinstance(extent, Chain):
        _read_links(extent, start, out, on_read)
        return
    if isinstance(extent, Extent) and layout.strides is None:
        offset = extent.offset + start * layout.dtype.itemsize
        extent.source.read_into(offset, out.data)
        on_read(extent, offset, out)
        return
    items = out.view(f"V{layout.dtype.itemsize}")
    done = 0
    for box in flat_boxes(layout.shape, start, start + len(items)):
        sizes = [stop - first for first, stop in box]
        count = math.prod(sizes)
        target = items[done : done + count].reshape(sizes)
        if isinstance(extent, Mosaic):
            for part, inside, where in overlaps(_tiles(extent), box):
                _read_box(part, inside, _strides(part), target[where], on_read)
        else:
            _read_box(extent, box, _strides(extent), target, on_read)
        done += count
    if isinstance(extent, Extent):
        extent.source.unspool(*_storage_range(extent), len(out))


def _read_links(chain: Chain, start: int, out: Bytes, on_read: OnRead) -> None:
    size, done = chain.layout.dtype.itemsize, 0
    for link, first, count in chain.split(start, len(out) // size):
        read_elements(link, first, out[done : done + count * size], on_read)
        done += count * size


def read_block(extent: Located, start: int, count: int) -> Bytes:
    """Return ``count`` elements of a tensor as they are stored, in memory of their own.

    Raises:
        InputChanged: they cannot be read.

    """
    raw = np.empty(count * extent.layout.dtype.itemsize, dtype=np.uint8)
    read_elements(extent, start, raw)
    return raw


def announce(extent: Located, start: int, count: int) -> None:
    """Announce to the sources that the elements ``[start, start + count)`` will be read soon."""
    if count == 0:
        return
    size = extent.layout.dtype.itemsize
    if isinstance(extent, Chain):
        for link, first, length in extent.split(start, count):
            announce(link, first, length)
    elif isinstance(extent, Mosaic):
        for box in flat_boxes(extent.layout.shape, start, start + count):
            for part, inside, _ in overlaps(_tiles(extent), box):
                first, last = _reach(inside, _strides(part))
                part.source.will_need(part.offset + first * size, (last + 1 - first) * size)
    elif extent.layout.strides is None:
        extent.source.will_need(extent.offset + start * size, count * size)
    else:
        extent.source.spool(*_storage_range(extent), count * size)


def _storage_range(extent: Extent) -> tuple[int, int]:
    """Return the byte range of a tensor's storage; of a storage with a checksum, the range of that."""
    if extent.record is not None:
        return extent.record.offset, extent.record.offset + extent.record.size
    reach = span(extent.layout.shape, _strides(extent)) * extent.layout.dtype.itemsize
    return extent.offset, extent.offset + reach


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Split the flat range ``[start, stop)`` of a C-ordered index space into boxes, in order, at most 2 per axis."""
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if first == last:
        yield from (
            ((first, first + 1), *box) for box in flat_boxes(shape[1:], start - first * row, stop - first * row)
        )
        return
    if start % row:
        yield from (((first, first + 1), *box) for box in flat_boxes(shape[1:], start % row, row))
        first += 1
    full = stop // row
    if full > first:
        yield ((first, full), *((0, size) for size in shape[1:]))
    if stop % row:
        yield from (((full, full + 1), *box) for box in flat_boxes(shape[1:], 0, stop % row))


def overlaps(tiles: Iterable[Tile[Thing]], box: Box) -> Iterator[tuple[Thing, Box, tuple[slice | EllipsisType, ...]]]:
    """Yield each tile that overlaps a box: what is there, the overlap in the tile, and its position in the box."""
    for origin, shape, thing in tiles:
        inside, where = [], []
        for begin, size, (start, stop) in zip(origin, shape, box, strict=True):
            first, last = max(start, begin), min(stop, begin + size)
            if first >= last:
                break
            inside.append((first - begin, last - begin))
            where.append(slice(first - start, last - start))
        else:
            yield thing, tuple(inside), (*where, ...)  # so that a single element is still an array


def _tiles(mosaic: Mosaic) -> Iterator[Tile[Extent]]:
    return ((origin, part.layout.shape, part) for origin, part in mosaic.tiles)


def _strides(extent: Extent) -> tuple[int, ...]:
    return contiguous_strides(extent.layout.shape) if extent.layout.strides is None else extent.layout.strides


def _reach(box: Box, strides: Sequence[int]) -> tuple[int, int]:
    """Return the indices in storage of the first and the last element of a box."""
    first = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
    last = sum((stop - 1) * stride for (_, stop), stride in zip(box, strides, strict=True))
    return first, last


def _read_box(extent: Extent, box: Box, strides: tuple[int, ...], target: NDArray[np.void], on_read: OnRead) -> None:
    shape = target.shape
    reach = span(shape, strides)
    itemsize = extent.layout.dtype.itemsize
    if reach <= max(_SLACK * target.size, _ALWAYS):
        first, _ = _reach(box, strides)
        raw = np.empty(reach, dtype=target.dtype)
        offset, stored = extent.offset + first * itemsize, raw.view(np.uint8)
        extent.source.read_into(offset, stored.data)
        on_read(extent, offset, stored)
        target[...] = as_strided(raw, shape, [stride * itemsize for stride in strides])
        return
    axis = max(range(len(shape)), key=lambda d: (shape[d] - 1) * strides[d])
    begin, end = box[axis]
    middle = (begin + end) // 2
    low = [slice(None)] * len(shape)
    high = list(low)
    low[axis], high[axis] = slice(0, middle - begin), slice(middle - begin, None)
    _read_box(extent, (*box[:axis], (begin, middle), *box[axis + 1 :]), strides, target[tuple(low)], on_read)
    _read_box(extent, (*box[:axis], (middle, end), *box[axis + 1 :]), strides, target[tuple(high)], on_read)
