"""The index of a checkpoint: for each tensor its name, type, shape and the bytes where its elements lie.

Checkpoints of one run share a layout, so a layout is held once (``LayoutPool``) and each checkpoint adds one offset
per tensor: 64 checkpoints of 3,000 tensors are 64 arrays of 24 kB and one list of names.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from ema_cli.dtypes import DType
from ema_cli.storage.source import ByteSource

Made = TypeVar("Made")
_MOST_REMEMBERED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """A tensor without its place: what all checkpoints of a run have in common."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """Elements from one index to the next, per dimension; ``None`` when contiguous in C order."""

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when written out contiguously."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A tensor with its place: element ``[0, ..., 0]`` lies at byte ``offset`` of ``source``."""

    source: ByteSource
    offset: int
    layout: TensorLayout


class LayoutPool:
    """What the checkpoints of one run have in common, held and worked out once."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[TensorLayout, ...], tuple[TensorLayout, ...]] = {}
        self._remembered: dict[Hashable, object] = {}

    def intern(self, layouts: tuple[TensorLayout, ...]) -> tuple[TensorLayout, ...]:
        """Return the one stored copy that is equal to ``layouts``."""
        if any(known is layouts for known in self._layouts.values()):
            return layouts
        return self._layouts.setdefault(layouts, layouts)

    def remember(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` gave for this ``key`` the last time, or make it now.

        Checkpoints of one run often have equal structure bytes, which then are parsed once. Few keys are kept, so
        that a run in which all of them differ does not hold everything that was ever parsed.
        """
        if key not in self._remembered:
            made = make()
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = made
        return cast("Made", self._remembered[key])


class TensorIndex:
    """The tensors of one checkpoint, by position and by name."""

    __slots__ = ("_offsets", "layouts", "source")

    def __init__(self, source: ByteSource, layouts: tuple[TensorLayout, ...], offsets: Sequence[int]) -> None:
        self.source = source
        self.layouts = layouts
        self._offsets = array("q", offsets)

    def __len__(self) -> int:
        return len(self.layouts)

    def __iter__(self) -> Iterator[Extent]:
        return (self.extent(position) for position in range(len(self)))

    def extent(self, position: int) -> Extent:
        """Return the tensor at ``position``."""
        return Extent(source=self.source, offset=self._offsets[position], layout=self.layouts[position])

    def ties(self) -> dict[str, str]:
        """Return ``{name: first name}`` of tensors that share all their bytes with an earlier one."""
        first: dict[tuple[object, ...], str] = {}
        tied: dict[str, str] = {}
        for layout, offset in zip(self.layouts, self._offsets, strict=True):
            if layout.elements == 0:
                continue
            place = (offset, layout.dtype, layout.shape, layout.strides)
            earlier = first.setdefault(place, layout.name)
            if earlier != layout.name:
                tied[layout.name] = earlier
        return tied


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous tensor of ``shape``."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def normal_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Return ``strides``, or ``None`` when they mean C order (the stride of a dimension of one index means nothing)."""
    if 0 in shape:
        return None
    expected = contiguous_strides(shape)
    same = all(size == 1 or a == b for size, a, b in zip(shape, strides, expected, strict=True))
    return None if same else tuple(strides)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements of storage a tensor reaches over, from its first to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
