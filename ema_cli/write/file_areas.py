"""The areas of a file in which tensors have given places: what is written, what is copied, what is set at the end.

Every byte of the file is in one area. A tensor with strides shares its area with what is between its elements: such an
area is mixed. It is copied first, then the elements are put into it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from ema_cli.record import record
from ema_cli.records.files import PlacedFile, PlacedTensor
from ema_cli.storage.extents import span

Range = tuple[int, int]
"""The first byte, and the byte after the last."""


@record
class FileAreas:
    """The areas of one file, each kind in order."""

    copied: tuple[Range, ...]
    """Everything that is not in the others. No range crosses a boundary of a checksum."""
    mixed: tuple[Range, ...]
    data_bytes: int
    """Bytes of tensors that are written into it."""

    def copied_in(self, begin: int, end: int) -> Iterator[Range]:
        """Yield the parts of the copied ranges from byte ``begin`` up to ``end``."""
        number = max(0, bisect_right(self.copied, (begin, begin)) - 1)
        while number < len(self.copied) and self.copied[number][0] < end:
            first, last = max(begin, self.copied[number][0]), min(end, self.copied[number][1])
            if first < last:
                yield first, last
            number += 1

    def is_mixed(self, offset: int) -> bool:
        """Whether a byte is in a mixed area."""
        number = bisect_right(self.mixed, (offset, offset + (1 << 62))) - 1
        return number >= 0 and offset < self.mixed[number][1]


def areas_of(files: Sequence[PlacedFile], tensors: Iterable[PlacedTensor]) -> list[FileAreas]:
    """Return the areas of every file."""
    solid: list[list[Range]] = [[] for _ in files]
    mixed: list[list[Range]] = [[] for _ in files]
    counts = [0] * len(files)
    for tensor in tensors:
        for place in tensor.places if tensor.nbytes else ():
            elements = span(place.shape, place.strides) if place.strides else _elements(place.shape)
            kind = solid if place.strides is None else mixed
            kind[place.file].append((place.offset, place.offset + elements * tensor.itemsize))
            counts[place.file] += _elements(place.shape) * tensor.itemsize
    return [
        _areas(file, ranges, merged(between), count)
        for file, ranges, between, count in zip(files, solid, mixed, counts, strict=True)
    ]


def _areas(file: PlacedFile, solid: list[Range], mixed: list[Range], data_bytes: int) -> FileAreas:
    fields = [(field, field + 4) for checksum in file.checksums for field in checksum.fields]
    taken = merged([*solid, *mixed, *fields])
    cuts = sorted({bound for one in file.checksums for bound in (one.begin, one.begin + one.nbytes)})
    copied = tuple(_cut(_complement(taken, file.nbytes), cuts))
    return FileAreas(copied=copied, mixed=tuple(_cut(mixed, cuts)), data_bytes=data_bytes)


def _elements(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in order, joined where they overlap or touch."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _complement(taken: Sequence[Range], size: int) -> Iterator[Range]:
    """Yield what is between the ranges, and after them up to ``size``."""
    position = 0
    for begin, end in [*taken, (size, size)]:
        if position < begin:
            yield position, begin
        position = max(position, end)


def _cut(ranges: Iterable[Range], cuts: Sequence[int]) -> Iterator[Range]:
    """Yield the ranges, cut at these bytes."""
    for begin, end in ranges:
        position, number = begin, bisect_right(cuts, begin)
        while number < len(cuts) and cuts[number] < end:
            yield position, cuts[number]
            position, number = cuts[number], number + 1
        yield position, end
