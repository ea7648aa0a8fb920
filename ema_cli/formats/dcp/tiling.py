"""Whether rectangles tile a tensor: no hole, no overlap, nothing outside.

Trainers cut tensors by straight cuts through all that is there, so the rectangles are taken apart by such cuts until
each stands alone. Rectangles without elements, which ranks hold that got nothing, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ema_cli.errors import InputRefused

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""The index of the first element, and the shape."""

_WORK_PER_RECTANGLE = 64
"""How often a rectangle is looked at, at most, on the average."""
_LEAST_WORK = 10_000


def check_tiling(shape: tuple[int, ...], rectangles: Sequence[Rectangle]) -> None:
    """Check that the rectangles that have elements tile a tensor of ``shape``.

    Raises:
        InputRefused: they do not; the message goes on after the name of the tensor.

    """
    for origin, sizes in rectangles:
        _check_inside(shape, origin, sizes)
    solid = [(origin, sizes) for origin, sizes in rectangles if 0 not in sizes]
    missing = math.prod(shape) - sum(math.prod(sizes) for _, sizes in solid)
    if missing > 0:
        raise InputRefused(f"is incomplete: {missing:,} of its {math.prod(shape):,} elements are in no piece")
    if missing < 0 or not _is_cut_up(shape, solid):
        raise InputRefused(f"is declared in {len(solid):,} pieces that overlap, such as {_two(solid)}")


def _check_inside(shape: tuple[int, ...], origin: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    if len(origin) == len(sizes) == len(shape):
        ends = zip(origin, sizes, shape, strict=True)
        if 0 in sizes or all(first + size <= whole for first, size, whole in ends):
            return
    raise InputRefused(f"has a piece of shape {list(sizes)} at {list(origin)}, outside its shape {list(shape)}")


def _is_cut_up(shape: tuple[int, ...], rectangles: list[Rectangle]) -> bool:
    """Whether straight cuts part all rectangles. Having as many elements as the tensor, they then tile it."""
    work = max(_LEAST_WORK, _WORK_PER_RECTANGLE * len(rectangles))
    groups = [rectangles]
    while groups:
        group = groups.pop()
        work -= len(group)
        if len(group) < 2:  # noqa: PLR2004 - one alone overlaps nothing
            continue
        parted = next((cut for axis in range(len(shape)) if len(cut := list(_cut(group, axis))) > 1), None)
        if parted is None or work < 0:
            return False
        groups.extend(parted)
    return True


def _cut(group: list[Rectangle], axis: int) -> Iterator[list[Rectangle]]:
    """Yield the rectangles between the cuts across ``axis`` that go through none of them."""
    ordered = sorted(group, key=lambda rectangle: rectangle[0][axis])
    begin, reach = 0, ordered[0][0][axis]
    for number, (origin, sizes) in enumerate(ordered):
        if number > begin and origin[axis] >= reach:
            yield ordered[begin:number]
            begin = number
        reach = max(reach, origin[axis] + sizes[axis])
    yield ordered[begin:]


def _two(rectangles: list[Rectangle]) -> str:
    """Name two of the rectangles, for a message."""
    ordered = sorted(rectangles)[:2]
    return " and ".join(f"{list(sizes)} at {list(origin)}" for origin, sizes in ordered)
