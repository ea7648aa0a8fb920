"""Write elements of tensors to their places in files: the inverse of ``ema_cli.storage.strided_read``.

Input -> output: bytes of the data section, and where its tensors are written -> pieces, each of which is a rectangle of
elements at regular distances in one file. Most are contiguous: a tensor, or a part of one. The others are put into the
file between bytes that stay: the bytes around them are read, changed, and written.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ema_cli.records.files import Place, PlacedTensor
from ema_cli.storage.extents import contiguous_strides, normal_strides, span
from ema_cli.storage.strided_read import Box, flat_boxes, overlaps
from ema_cli.write.file import write_at

_SLACK = 4
"""A box is written in one piece if it spans at most this many times its elements."""
_ALWAYS = 1 << 14
"""Elements of a file that are read and written in one piece even if few of them change."""

Items = NDArray[np.void]
"""Elements of a tensor, each as its bytes."""


class PlacedElements(NamedTuple):
    """Elements of a tensor that have a place in one file."""

    file: int
    offset: int
    """Byte of the file where the first of them is written."""
    strides: tuple[int, ...] | None
    """Elements of the file from one index to the next, per dimension; ``None`` if they are contiguous in C order."""
    items: Items

    @property
    def data(self) -> memoryview:
        """The bytes in C order."""
        return np.ascontiguousarray(self.items).reshape(-1).view(np.uint8).data


class PlacedTensors:
    """The tensors of a data section by position."""

    def __init__(self, tensors: Sequence[PlacedTensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.nbytes]
        self._begins = [tensor.begin for tensor in self._tensors]

    def places_at(self, offset: int) -> tuple[Place, ...]:
        """Return the places of the tensor at byte ``offset`` of the data section."""
        return self._tensors[bisect_right(self._begins, offset) - 1].places

    def pieces(self, offset: int, data: memoryview) -> Iterator[PlacedElements]:
        """Yield the pieces of bytes at byte ``offset`` of the data section, whole elements of one tensor or several."""
        while data:
            tensor = self._tensors[bisect_right(self._begins, offset) - 1]
            part = data[: tensor.begin + tensor.nbytes - offset]
            items = np.frombuffer(part, dtype=f"V{tensor.itemsize}")
            yield from _pieces_of(tensor, (offset - tensor.begin) // tensor.itemsize, items)
            offset, data = offset + len(part), data[len(part) :]


def _pieces_of(tensor: PlacedTensor, start: int, items: Items) -> Iterator[PlacedElements]:
    """Yield the pieces of the elements of a tensor from flat index ``start`` on."""
    if len(tensor.places) == 1 and tensor.places[0].strides is None:
        (place,) = tensor.places
        yield PlacedElements(place.file, place.offset + start * tensor.itemsize, None, items)
        return
    tiles = [(place.origin, place.shape, place) for place in tensor.places]
    done = 0
    for box in flat_boxes(tensor.shape, start, start + len(items)):
        sizes = [stop - first for first, stop in box]
        count = math.prod(sizes)
        block = items[done : done + count].reshape(sizes)
        for place, inside, where in overlaps(tiles, box):
            yield _piece(place, inside, block[where], tensor.itemsize)
        done += count


def _piece(place: Place, inside: Box, items: Items, itemsize: int) -> PlacedElements:
    strides = contiguous_strides(place.shape) if place.strides is None else place.strides
    first = sum(start * stride for (start, _), stride in zip(inside, strides, strict=True))
    return PlacedElements(place.file, place.offset + first * itemsize, normal_strides(items.shape, strides), items)


def put_between(descriptor: int, offset: int, strides: Sequence[int], items: Items) -> None:
    """Write elements at regular distances into a file; the bytes between them stay.

    Args:
        descriptor: of the file, open for reading and writing. Nothing else may write into this range meanwhile.
        offset: byte of the first element.
        strides: elements from one index to the next, per dimension.
        items: the elements.

    Raises:
        OSError: the system refuses.

    """
    shape, itemsize = items.shape, items.dtype.itemsize
    reach = span(shape, strides)
    if reach <= max(_SLACK * items.size, _ALWAYS):
        raw = bytearray(reach * itemsize)
        read_at(descriptor, offset, memoryview(raw))
        stored = np.frombuffer(raw, dtype=items.dtype)
        as_strided(stored, shape, [stride * itemsize for stride in strides])[...] = items
        write_at(descriptor, offset, memoryview(raw))
        return
    axis = max(range(len(shape)), key=lambda d: (shape[d] - 1) * strides[d])
    middle = shape[axis] // 2
    low = [slice(None)] * len(shape)
    high = list(low)
    low[axis], high[axis] = slice(0, middle), slice(middle, None)
    put_between(descriptor, offset, strides, items[tuple(low)])
    put_between(descriptor, offset + middle * strides[axis] * itemsize, strides, items[tuple(high)])


def read_at(descriptor: int, offset: int, buffer: memoryview) -> None:
    """Fill ``buffer`` with the bytes at byte ``offset`` of a file.

    Raises:
        OSError: the system refuses, or the file ends.

    """
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise OSError(f"the file ends at byte {offset + done:,}")
        done += count
