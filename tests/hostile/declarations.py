"""Pickles of tensors whose declarations may contradict each other, and what must hold for those that are accepted."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random

from ema_cli.formats.structure import Structure
from tests.hostile.opcodes import mapping, num, stop, storage, tensor, text, tup, typed

_MOST_CHECKED = 40
"""Tensors of one file whose places are compared."""
_KINDS = ("FloatStorage", "IntStorage", "HalfStorage", "ByteStorage", "BoolStorage", "UntypedStorage", "EvilStorage")
_SIZES = (4, 4, 8, 16, 16, 0, 3, -1, 1 << 62, 1 << 64)
_KEYS = (*map(text, ("w", "v", "0", "layers", "exp_avg", "param_groups")), num(0), num(-1), b"N", b"\x88", tup(num(0)))
"""Keys of parts, many of them no strings."""


def declarations(random: Random) -> bytes:
    """Return a pickle of tensors in two storages, whose types, sizes and keys may contradict each other."""
    kinds, sizes = (
        random.choices(_KINDS, k=random.choice((1, 1, 2, 3))),
        random.choices(_SIZES, k=random.choice((1, 2))),
    )

    def one() -> bytes:
        made = storage(random.choice("0001"), kind=random.choice(kinds), elements=random.choice(sizes))
        offset, count = random.choice((0, 0, 1, 4, 15)), random.choice((0, 1, 2, 4, 8, 16))
        if random.randrange(3) == 0:
            dtype = random.choice(("float8_e4m3fn", "uint16", "float32", "uint64"))
            return typed(dtype, count, offset=offset, strides=(random.choice((1, 2)),), storage_opcodes=made)
        return tensor(made, offset=offset, shape=(count,))

    def part(depth: int) -> bytes:
        pairs = (
            random.choice(_KEYS) + (part(depth - 1) if depth and random.randrange(3) == 0 else one()) for _ in "abc"
        )
        return b"}(" + b"".join(pairs) + b"u"

    return stop(random.choice((part(2), mapping(model=part(2), optimizer=mapping(state=part(1)), beside=part(1)))))


def check_places(structure: Structure, size: int) -> None:
    """Every tensor must be inside its file, and share bytes only with tensors of its own type.

    Raises:
        AssertionError: a reader accepted something else.

    """
    found = []
    for layout, begin in list(zip(structure.layouts, structure.offsets, strict=True))[:_MOST_CHECKED]:
        elements = math.prod(layout.shape)
        if layout.strides is not None and elements:
            elements = 1 + sum((n - 1) * step for n, step in zip(layout.shape, layout.strides, strict=True))
        end = begin + elements * layout.dtype.itemsize
        if not 0 <= begin <= end <= size:
            raise AssertionError(f"{layout.name!a} is in bytes {begin} to {end} of {size}")
        found.append((begin, end, layout.dtype))
    for one, other in combinations(found, 2):
        if one[2] != other[2] and max(one[0], other[0]) < min(one[1], other[1]):
            raise AssertionError(f"two types in the same bytes: {one} and {other}")
