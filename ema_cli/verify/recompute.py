"""Compute a piece of an output once more, from its inputs alone, and find where it is not what was written.

The sum is written here a second time, without the lanes of the fold: per element upcast to float64, multiply, add, as
separate operations in fold order, rounded once. A weight of zero adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ema_cli.dtypes import DType, Kind
from ema_cli.fold.conversion import Bytes, Float64, components, decode, round_to
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first element of a piece that is not what it should be."""

    index: int
    """Counted from the beginning of the piece."""
    expected: str
    found: str
    count: int
    """Elements of the piece that are wrong."""


def read_piece(extent: Located, start: int, count: int) -> Bytes:
    """Return ``count`` elements as they lie in the file.

    Raises:
        InputChanged: they cannot be read.

    """
    raw = np.empty(count * extent.layout.dtype.itemsize, dtype=np.uint8)
    read_elements(extent, start, raw)
    return raw


def recompute(terms: Sequence[tuple[float, Located]], start: int, count: int, dtype: DType) -> Bytes:
    """Return ``count`` elements of ``sum_i w_i theta_i`` as the bytes of ``dtype``.

    Args:
        terms: weights that are not zero, and what they multiply, in fold order; at least one.
        start: the first element.
        count: the number of elements.
        dtype: of the output, with as many ``components`` as the inputs have.

    Raises:
        InputChanged: an input cannot be read.

    """
    with np.errstate(all="ignore"):
        products = (_numbers(read_piece(extent, start, count), extent.layout.dtype) * w for w, extent in terms)
        total = next(products)
        for product in products:
            total = total + product
        return round_to(total, dtype)


def find_mismatch(expected: Bytes, found: Bytes, dtype: DType) -> Mismatch | None:
    """Compare two pieces bit for bit; NaN matches any NaN, whose bits IEEE 754 leaves open."""
    bits = f"u{dtype.itemsize}"
    wrong = np.flatnonzero(expected.view(bits) != found.view(bits))
    if dtype.averaged and len(wrong):
        parts = (raw.view(bits)[wrong].view(np.uint8) for raw in (expected, found))
        x, y = (_numbers(part, dtype).reshape(len(wrong), -1) for part in parts)
        wrong = wrong[~((np.isnan(x) & np.isnan(y)) | (x.view(np.uint64) == y.view(np.uint64))).all(axis=1)]
    if not len(wrong):
        return None
    first = int(wrong[0])
    return Mismatch(
        index=first,
        expected=_shown(expected, first, dtype),
        found=_shown(found, first, dtype),
        count=len(wrong),
    )


def _numbers(raw: Bytes, dtype: DType) -> Float64:
    values = np.empty(len(raw) // dtype.itemsize * components(dtype))
    decode(raw, dtype, values)
    return values


def _shown(raw: Bytes, index: int, dtype: DType) -> str:
    """Return one element as text; its bits where it is no number."""
    element = raw[index * dtype.itemsize : (index + 1) * dtype.itemsize]
    if dtype.averaged:
        return " and ".join(repr(float(number)) for number in _numbers(element, dtype))
    return str(element.view(dtype.torch_name)[0]) if dtype.kind is Kind.INTEGER else f"0x{element.tobytes().hex()}"
