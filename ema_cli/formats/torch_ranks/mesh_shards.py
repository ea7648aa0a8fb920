"""Which rectangles of a distributed tensor a rank holds, from the mesh of ranks and the placements.

A dimension of the tensor is cut into equal chunks, the last ones smaller or empty, once for each dimension of the mesh
that shards it, from left to right. A strided placement (FSDP2 over tensor parallelism) first cuts into
``split_factor`` chunks, cuts each of them, and takes the same piece of each: the part of the rank may then be several
rectangles. Source: ``torch/distributed/tensor/placement_types.py`` (``Shard``, ``_StridedShard``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from itertools import product

from ema_cli.errors import InputRefused
from ema_cli.record import record

Sizes = tuple[int, ...]
Range = tuple[int, int]
"""The first index, and the number of indexes."""
_MOST_RECTANGLES = 256
"""Of one tensor on one rank."""
_MOST_AXES = 16
"""Dimensions of a mesh."""


@record
class AxisPlacement:
    """What one dimension of the mesh does to the tensor."""

    dim: int | None = None
    """The dimension that it shards; ``None`` if each of its ranks has a copy."""
    split_factor: int = 1
    """Chunks into which the dimension is cut first."""


@record
class Sharding:
    """How a tensor is distributed, and the place of one rank."""

    mesh: Sizes
    """Ranks along each dimension of the mesh."""
    coordinate: Sizes
    placements: tuple[AxisPlacement, ...]
    order: Mapping[int, Sizes] = field(default_factory=dict)
    """For a dimension of the tensor, the dimensions of the mesh that shard it, in order; else from left to right."""


@record
class Rectangle:
    """A rectangle of the tensor in the local part."""

    origin: Sizes
    """Index of its first element in the tensor."""
    start: Sizes
    """The same in the local part."""
    shape: Sizes


@record
class LocalShape:
    """The part of one rank."""

    local_shape: Sizes
    rectangles: tuple[Rectangle, ...]


def rectangles_of(shape: Sizes, sharding: Sharding) -> LocalShape:
    """Return the shape of the part of a rank, and its rectangles.

    Raises:
        InputRefused: mesh, coordinate and placements contradict each other, or there are too many rectangles.

    """
    _check(shape, sharding)
    ranges = [_ranges(size, _steps(dim, sharding)) for dim, size in enumerate(shape)]
    if math.prod(map(len, ranges)) > _MOST_RECTANGLES:
        raise InputRefused(f"is in more than {_MOST_RECTANGLES:,} pieces on one rank")
    placed = [list(_with_starts(found)) for found in ranges]
    return LocalShape(
        local_shape=tuple(sum(length for _, length in found) for found in ranges),
        rectangles=tuple(_rectangle(chosen) for chosen in product(*placed)),
    )


def _check(shape: Sizes, sharding: Sharding) -> None:
    same = len(sharding.mesh) == len(sharding.coordinate) == len(sharding.placements) <= _MOST_AXES
    if not same or any(place >= ranks for place, ranks in zip(sharding.coordinate, sharding.mesh, strict=False)):
        raise InputRefused("has a damaged placement")
    if any(one.dim is not None and one.dim >= len(shape) for one in sharding.placements):
        raise InputRefused("is sharded along a dimension that it does not have")


def _steps(dim: int, sharding: Sharding) -> Iterator[tuple[int, int, int]]:
    """Yield what shards a dimension, in order: the number of chunks, the chunk of this rank, and the split factor."""
    axes = [axis for axis, placement in enumerate(sharding.placements) if placement.dim == dim]
    order = sharding.order.get(dim, tuple(axes))
    if sorted(order) != axes:
        raise InputRefused("has a damaged order of shards")
    for axis in order:
        yield sharding.mesh[axis], sharding.coordinate[axis], sharding.placements[axis].split_factor


def _ranges(size: int, steps: Iterator[tuple[int, int, int]]) -> list[Range]:
    """Return the indexes of a dimension that remain after all steps."""
    found: list[Range] = [(0, size)]
    for chunks, chunk, split_factor in steps:
        if split_factor < 1 or not chunks:
            raise InputRefused("has a damaged placement")
        if split_factor * len(found) > _MOST_RECTANGLES:
            raise InputRefused(f"is in more than {_MOST_RECTANGLES:,} pieces on one rank")
        total = sum(length for _, length in found)
        kept: list[Range] = []
        for number in range(split_factor):
            begin, length = _chunk(total, split_factor, number)
            inner, inner_length = _chunk(length, chunks, chunk)
            kept.extend(_cut(found, begin + inner, inner_length))
        found = _joined(kept)
    return found


def _chunk(size: int, chunks: int, number: int) -> Range:
    """Return a chunk of ``torch.chunk``: all of one size, rounded up; the last may be smaller, or empty."""
    length = -(-size // chunks)
    begin = min(number * length, size)
    return begin, min(length, size - begin)


def _cut(ranges: Sequence[Range], begin: int, length: int) -> Iterator[Range]:
    """Yield the indexes at the positions ``[begin, begin + length)`` of ``ranges``."""
    position = 0
    for first, count in ranges:
        start, end = max(begin, position), min(begin + length, position + count)
        if start < end:
            yield first + start - position, end - start
        position += count


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Return the ranges, those joined that follow each other; one empty range if there is none."""
    joined: list[Range] = []
    for first, count in ranges:
        if joined and sum(joined[-1]) == first:
            joined[-1] = joined[-1][0], joined[-1][1] + count
        else:
            joined.append((first, count))
    return joined or [(0, 0)]


def _with_starts(ranges: Sequence[Range]) -> Iterator[tuple[int, int, int]]:
    """Yield each range with its position in the local part before it."""
    position = 0
    for first, count in ranges:
        yield first, position, count
        position += count


def _rectangle(chosen: Sequence[tuple[int, int, int]]) -> Rectangle:
    return Rectangle(
        origin=tuple(first for first, _, _ in chosen),
        start=tuple(start for _, start, _ in chosen),
        shape=tuple(count for _, _, count in chosen),
    )
