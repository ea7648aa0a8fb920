"""Whether rectangles tile a tensor: no gap, no overlap, nothing outside.

Trainers split tensors by straight cuts across the whole tensor, so the rectangles are separated by such cuts until
each is alone. Rectangles without elements, from ranks that got no part, are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ema_cli.errors import InputRefused

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""The index of the first element, and the shape."""

_WORK_PER_RECTANGLE = 64
"""Average number of times that a rectangle may be examined."""
_LEAST_WORK = 10_000


def check_tiling(shape: tuple[int, ...], rectangles: Sequence[Rectangle]) -> None:
    """Check that the rectangles that have elements tile a tensor of ``shape``.

    Raises:
        InputRefused: they do not; the message continues the name of the tensor.

    """
    for origin, sizes in rectangles:
        _check_inside(shape, origin, sizes)
    solid = [(origin, sizes) for origin, sizes in rectangles if 0 not in sizes]
    missing = math.prod(shape) - sum(math.prod(sizes) for _, sizes in solid)
    if missing > 0:
        raise InputRefused(f"is incomplete: {missing:,} of its {math.prod(shape):,} elements are in no piece")
    if missing < 0 or not _are_separable(shape, solid):
        raise InputRefused(f"is declared in {len(solid):,} pieces that overlap, such as {_first_two(solid)}")


def _check_inside(shape: tuple[int, ...], origin: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    if len(origin) == len(sizes) == len(shape):
        ends = zip(origin, sizes, shape, strict=True)
        if 0 in sizes or all(first + size <= whole for first, size, whole in ends):
            return
    raise InputRefused(f"has a piece of shape {list(sizes)} at {list(origin)}, outside its shape {list(shape)}")


def _are_separable(shape: tuple[int, ...], rectangles: list[Rectangle]) -> bool:
    """Whether straight cuts separate all rectangles. If they have as many elements as the tensor, they tile it."""
    work = max(_LEAST_WORK, _WORK_PER_RECTANGLE * len(rectangles))
    groups = [rectangles]
    while groups:
        group = groups.pop()
        work -= len(group)
        if len(group) < 2:  # noqa: PLR2004 - a single rectangle overlaps nothing
            continue
        separated = next((cut for axis in range(len(shape)) if len(cut := list(_cut(group, axis))) > 1), None)
        if separated is None or work < 0:
            return False
        groups.extend(separated)
    return True


def _cut(group: list[Rectangle], axis: int) -> Iterator[list[Rectangle]]:
    """Yield the groups of rectangles between the cuts across ``axis`` that cut none of them."""
    ordered = sorted(group, key=lambda rectangle: rectangle[0][axis])
    begin, reach = 0, ordered[0][0][axis]
    for number, (origin, sizes) in enumerate(ordered):
        if number > begin and origin[axis] >= reach:
            yield ordered[begin:number]
            begin = number
        reach = max(reach, origin[axis] + sizes[axis])
    yield ordered[begin:]


def _first_two(rectangles: list[Rectangle]) -> str:
    """Describe two of the rectangles for a message."""
    ordered = sorted(rectangles)[:2]
    return " and ".join(f"{list(sizes)} at {list(origin)}" for origin, sizes in ordered)
