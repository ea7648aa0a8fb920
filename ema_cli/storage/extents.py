"""The index of a checkpoint: for each tensor its name, type, shape, and the position of its elements.

A checkpoint is one file or several. A tensor is one piece of one file, or consists of rectangles (``Part``) in several
files, as trainers on many machines write them, or of links: consecutive stretches of its flattened elements. The
checkpoints of a run share a layout, which is held once (``LayoutPool``); each checkpoint adds one offset per piece: 64
checkpoints of 3,000 tensors are 64 arrays of 24 kB and one list of names.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from types import MappingProxyType
from typing import NamedTuple, TypeVar, cast

from ema_cli.dtypes import DType
from ema_cli.record import record
from ema_cli.storage.checksums import Record, RecordTable
from ema_cli.storage.source import ByteSource

Made = TypeVar("Made")
_MOST_REMEMBERED = 2
_MOST_BRANCHES = 4096


class Part(NamedTuple):
    """A rectangle of a tensor that is stored separately."""

    origin: tuple[int, ...]
    """Index in the tensor of the rectangle's first element."""
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """As in ``TensorLayout``, in the rectangle's own storage."""


class TensorLayout(NamedTuple):
    """A tensor without its position: the same in all checkpoints of a run."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """Elements from one index to the next, per dimension; ``None`` when contiguous in C order."""
    parts: tuple[Part, ...] = ()
    """Rectangles that together are the tensor, each with its own position; empty if it is one piece."""
    links: tuple[int, ...] = ()
    """First elements of the stretches of the flattened tensor that are stored separately; empty if it is not cut up."""

    @property
    def pieces(self) -> int:
        """The number of separately stored pieces."""
        return len(self.parts) or len(self.links) or 1

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor if written contiguously."""
        return self.elements * self.dtype.itemsize


class Extent(NamedTuple):
    """A tensor with its position: element ``[0, ..., 0]`` is at byte ``offset`` of ``source``."""

    source: ByteSource
    offset: int
    layout: TensorLayout
    record: Record | None = None
    """The range with a checksum that includes it, if there is one."""


@record
class Mosaic:
    """A tensor that consists of rectangles."""

    layout: TensorLayout
    tiles: tuple[tuple[tuple[int, ...], Extent], ...]
    """For each rectangle the index of its first element, and its extent."""


@record
class Chain:
    """A tensor that consists of links: consecutive stretches of its flattened elements, each stored contiguously.

    A tensor that a thousand ranks share has a thousand links, so the extent of a link is made when it is asked for.
    """

    layout: TensorLayout
    index: TensorIndex
    first: int
    """The number of the first link among the pieces of the index."""

    def link_at(self, element: int) -> int:
        """Return the number of the link that holds an element."""
        return bisect_right(self.layout.links, element) - 1

    def begin(self, number: int) -> int:
        """Return the first element of a link, or for the number after the last link the number of elements."""
        return self.layout.links[number] if number < len(self.layout.links) else self.layout.elements

    def link(self, number: int) -> Extent:
        """Return a link as a tensor of its own, of one dimension."""
        return self.index.link(self, number)

    def split(self, start: int, count: int) -> Iterator[tuple[Extent, int, int]]:
        """Yield the links that hold the elements ``[start, start + count)``.

        Each comes with the first of these elements, counted from the beginning of the link, and their number.
        """
        stop = start + count
        number = self.link_at(start)
        while start < stop:
            begin, end = self.begin(number), min(stop, self.begin(number + 1))
            yield self.link(number), start - begin, end - start
            start = end
            number += 1


Located = Extent | Mosaic | Chain
"""A tensor with its position or positions."""


class LayoutPool:
    """The common data of the checkpoints of a run, computed and held once. Thread-safe."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[TensorLayout, ...], tuple[TensorLayout, ...]] = {}
        self._remembered: dict[Hashable, object] = {}
        self._of_layouts: dict[tuple[int, Hashable], object] = {}
        """By the identity of interned layouts, which are never freed, and a key."""
        self._branches: dict[str, LayoutPool] = {}
        self._lock = threading.Lock()

    def branch(self, name: str) -> LayoutPool:
        """Return the pool for a file of the checkpoint folders of a run, such as the second shard, by its name."""
        with self._lock:
            if len(self._branches) >= _MOST_BRANCHES:
                self._branches.clear()
            return self._branches.setdefault(name, LayoutPool())

    def intern(self, layouts: tuple[TensorLayout, ...]) -> tuple[TensorLayout, ...]:
        """Return the one stored copy that equals ``layouts``."""
        with self._lock:
            if any(known is layouts for known in self._layouts.values()):
                return layouts
            return self._layouts.setdefault(layouts, layouts)

    def remember_of(self, layouts: tuple[TensorLayout, ...], key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the earlier result of ``make`` for ``layouts`` from ``intern`` and this ``key``, or make it now."""
        with self._lock:
            if (id(layouts), key) in self._of_layouts:
                return cast("Made", self._of_layouts[id(layouts), key])
        made = make()
        with self._lock:
            return cast("Made", self._of_layouts.setdefault((id(layouts), key), made))

    def remember(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the earlier result of ``make`` for this ``key``, or make it now.

        Checkpoints of one run often have equal structure bytes, which then are parsed once. Only a few results are
        kept, so a run of different checkpoints does not hold everything that was ever parsed.
        """
        with self._lock:
            if key in self._remembered:
                return cast("Made", self._remembered[key])
        made = make()
        with self._lock:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            return cast("Made", self._remembered.setdefault(key, made))


class TensorIndex:
    """The tensors of one checkpoint by position and name, and their files.

    Args:
        sources: the files of the checkpoint, open.
        layouts: of the tensors.
        offsets: byte offset of each piece, in order: one per tensor, or one per part of it.
        files: the number of the source of each piece; empty if all are in the first.
        records: the checksums of the sources, by number.

    """

    __slots__ = ("_files", "_first", "_offsets", "_records", "layouts", "sources")

    def __init__(
        self,
        sources: Sequence[ByteSource],
        layouts: tuple[TensorLayout, ...],
        offsets: Sequence[int],
        files: Sequence[int] = (),
        records: Mapping[int, RecordTable] = MappingProxyType({}),
    ) -> None:
        self.sources = tuple(sources)
        self.layouts = layouts
        self._offsets = _as_array(offsets)
        self._files = _as_array(files)
        self._records = records
        counts = (layout.pieces for layout in layouts)
        has_parts = any(layout.pieces > 1 for layout in layouts if layout.parts or layout.links)
        self._first = array("q", accumulate(counts, initial=0)) if has_parts else None
        """The first piece of each tensor; ``None`` if each tensor is one piece."""

    @property
    def has_parts(self) -> bool:
        """Whether any tensor consists of several parts."""
        return self._first is not None

    @property
    def places(self) -> tuple[array[int], array[int]]:
        """The byte offset of every piece, and the numbers of their files; no numbers if all are in the first."""
        return self._offsets, self._files

    def checksums(self, file: int) -> RecordTable | None:
        """Return the checksums that a file has of its records, if it has some."""
        return self._records.get(file)

    def __len__(self) -> int:
        return len(self.layouts)

    def __iter__(self) -> Iterator[Located]:
        return (self.extent(position) for position in range(len(self)))

    def extent(self, position: int) -> Located:
        """Return the tensor at ``position``."""
        layout = self.layouts[position]
        piece = position if self._first is None else self._first[position]
        if layout.links:
            return Chain(layout=layout, index=self, first=piece)
        if not layout.parts:
            return self._extent(piece, layout)
        tiles = []
        for number, part in enumerate(layout.parts, piece):
            inner = TensorLayout(name=layout.name, dtype=layout.dtype, shape=part.shape, strides=part.strides)
            tiles.append((part.origin, self._extent(number, inner)))
        return Mosaic(layout=layout, tiles=tuple(tiles))

    def link(self, chain: Chain, number: int) -> Extent:
        """Return a link of a tensor of this index."""
        whole, elements = chain.layout, chain.begin(number + 1) - chain.begin(number)
        inner = TensorLayout(name=whole.name, dtype=whole.dtype, shape=(elements,), strides=None)
        return self._extent(chain.first + number, inner)

    def _extent(self, piece: int, layout: TensorLayout) -> Extent:
        file, offset = self._files[piece] if self._files else 0, self._offsets[piece]
        table = self._records.get(file)
        record = None if table is None else table.find(offset)
        return Extent(source=self.sources[file], offset=offset, layout=layout, record=record)

    def ties(self) -> dict[str, str]:
        """Return ``{name: first name}`` of the tensors that share all their bytes with an earlier tensor."""
        if len(set(zip(self._offsets, self._files or repeat(0), strict=False))) == len(self._offsets):
            return {}  # no two pieces begin at one place, as in most files
        first: dict[object, str] = {}
        tied: dict[str, str] = {}
        begin = 0
        for layout in self.layouts:
            end = begin + layout.pieces
            if layout.elements:
                pieces = (tuple(self._offsets[begin:end]), tuple(self._files[begin:end]))
                key = (pieces, layout.dtype, layout.shape, layout.strides, layout.parts, layout.links)
                earlier = first.setdefault(key, layout.name)
                if earlier != layout.name:
                    tied[layout.name] = earlier
            begin = end
        return tied

    @property
    def identity(self) -> frozenset[object]:
        """Equal for two checkpoints with the same files."""
        return frozenset(source.identity for source in self.sources)

    @property
    def version(self) -> int:
        """The latest version of any of the files."""
        return max(source.version for source in self.sources)

    @property
    def state(self) -> tuple[object, ...]:
        """The states of the files when they were opened."""
        return tuple(source.state for source in self.sources)

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(source.size() for source in self.sources)

    def raise_if_changed(self) -> bool:
        """Raise ``InputChanged`` if a file changed since opening; return whether only the name of a file is gone."""
        renamed = [source.raise_if_changed() for source in self.sources]  # all of them are checked
        return any(renamed)

    def close(self) -> None:
        """Close all files."""
        for source in self.sources:
            source.close()


def _as_array(numbers: Sequence[int]) -> array[int]:
    """Return numbers as an array; one that is an array already, which checkpoints may share, is not copied."""
    return numbers if isinstance(numbers, array) and numbers.typecode == "q" else array("q", numbers)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous tensor of ``shape``."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def normal_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Return ``strides``, or ``None`` if they are C order (the stride of a dimension of size 1 does not matter)."""
    if 0 in shape:
        return None
    expected = contiguous_strides(shape)
    same = all(size == 1 or a == b for size, a, b in zip(shape, strides, expected, strict=True))
    return None if same else tuple(strides)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the number of elements of storage from a tensor's first element to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
