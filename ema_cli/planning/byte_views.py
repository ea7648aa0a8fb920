"""Which bytes of a file a tensor has, and whether two tensors have some in common.

A view is a box of elements at regular distances. Two views of one storage are compared by the digits of their elements:
with the strides of both as the places of a number system, every element has one number, and two boxes have an element
in common if they overlap in every digit. Where strides fit no such system, views whose ranges overlap count as sharing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

Owner = TypeVar("Owner")


class ByteView(NamedTuple):
    """The bytes of a tensor."""

    begin: int
    """The first, best counted from the beginning of the storage."""
    dims: tuple[tuple[int, int], ...]
    """Size and distance in bytes of each dimension, the largest distance first; the last are the bytes of elements."""

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.begin + 1 + sum((size - 1) * step for size, step in self.dims)


def view_of(begin: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> ByteView:
    """Return the view of a tensor with elements, at byte ``begin``; ``strides`` count elements."""
    pairs = [(size, stride * itemsize) for size, stride in zip(shape, strides, strict=True) if size > 1]
    dims: list[tuple[int, int]] = []
    for size, step in sorted([*pairs, (itemsize, 1)], key=lambda pair: -pair[1]):
        if dims and dims[-1][1] == size * step:
            dims[-1] = dims[-1][0] * size, step
        else:
            dims.append((size, step))
    return ByteView(begin, tuple(dims))


def overlaps_itself(view: ByteView) -> bool:
    """Whether two elements may have a byte in common, as in an expanded tensor."""
    reach = 1
    for size, step in reversed(view.dims):
        if step < reach:
            return True
        reach += (size - 1) * step
    return False


def share_bytes(one: ByteView, other: ByteView) -> bool:
    """Whether two views have a byte in common, or may have."""
    if one.end <= other.begin or other.end <= one.begin:
        return False
    steps = sorted({step for _, step in (*one.dims, *other.dims) if step}, reverse=True)
    if (one.begin - other.begin) % math.gcd(*steps):
        return False
    starts = {0, min(one.begin, other.begin)}
    hulls = [(_hull(one, least), _hull(other, least)) for least in steps]
    return all(_overlap(*pair, start) for pair in [(one, other), *hulls] for start in starts)


def _hull(view: ByteView, least: int) -> ByteView:
    """Return a view without gaps in the dimensions of smaller steps than ``least``."""
    kept = [(size, step) for size, step in view.dims if step >= least]
    reach = 1 + sum((size - 1) * step for size, step in view.dims if step < least)
    return ByteView(view.begin, (*kept, (reach, 1))) if least > 1 else view


def _overlap(one: ByteView, other: ByteView, start: int) -> bool:
    """Whether two views overlap in every digit, or may; the numbers count from byte ``start``."""
    steps = sorted({step for _, step in (*one.dims, *other.dims) if step}, reverse=True)
    box, other_box = _digits(one, start, steps), _digits(other, start, steps)
    if box is None or other_box is None:
        return True
    pairs = zip(box, other_box, strict=True)
    return all(first < other_end and other_first < end for (first, end), (other_first, other_end) in pairs)


def _digits(view: ByteView, start: int, steps: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return the range of every digit of the elements of a view; ``None`` if a digit would carry."""
    sizes = {step: size for size, step in view.dims if step}
    if len(sizes) < sum(step > 0 for _, step in view.dims):
        return None
    rest, first = view.begin - start, dict[int, int]()
    for step in steps:
        first[step], rest = divmod(rest, step)
    reach = 0
    for step, above in zip(reversed(steps), [*reversed(steps[:-1]), None], strict=True):
        size = sizes.setdefault(step, 1)
        if above is not None and first[step] == 0 and size * step > above and size * step % above == 0 == above % step:
            if sizes.get(above, 1) > 1:
                return None
            sizes[step], sizes[above] = above // step, size * step // above  # whole rows of the next dimension
        reach += (first[step] + sizes[step] - 1) * step
        if above is not None and reach >= above:
            return None
    return [(first[step], first[step] + sizes[step]) for step in steps]


def overlapping(views: Iterable[tuple[ByteView, Owner]], *, most: int) -> Iterator[tuple[Owner, Owner]]:
    """Yield pairs of which the ranges from the first to the last byte overlap and that share bytes, or may.

    After ``most`` pairs of ranges, every further pair counts as sharing.
    """
    active: list[tuple[ByteView, Owner]] = []
    compared = 0
    for view, owner in sorted(views, key=lambda one: one[0]):
        active = [one for one in active if one[0].end > view.begin]
        for other, its_owner in active:
            compared += 1
            if compared > most or share_bytes(other, view):
                yield its_owner, owner
        active.append((view, owner))
