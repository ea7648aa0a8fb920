"""Recompute a piece of an output from its inputs, and find elements that differ from the written piece.

A second, independent implementation of the sum, without the lanes of the fold: per element upcast to float64, multiply
and add as separate operations in fold order, then round once. Inputs with a weight of zero are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ema_cli.dtypes import DType, Kind
from ema_cli.fold.constants import as_written, equal_numbers
from ema_cli.fold.conversion import Bytes, numbers_in, round_to
from ema_cli.record import record
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_block


@record
class Mismatch:
    """The first element of a piece that differs from the recomputed one."""

    index: int
    """Offset in the piece, in elements."""
    expected: str
    found: str
    count: int
    """Number of elements of the piece that differ."""


def recompute(terms: Sequence[tuple[float, Located]], start: int, count: int, dtype: DType) -> Bytes:
    """Return ``count`` elements of ``sum_i w_i theta_i`` as the bytes of ``dtype``.

    The ``terms`` are nonzero weights with their tensors, in fold order, at least one. All types have the same number
    of ``components``.

    Raises:
        InputChanged: an input cannot be read.

    """
    with np.errstate(all="ignore"):
        products = (numbers_in(read_block(extent, start, count), extent.layout.dtype) * w for w, extent in terms)
        total = next(products)
        for product in products:
            total = total + product
        return round_to(total, dtype).raw


def keep(terms: Sequence[tuple[float, Located]], start: int, count: int, dtype: DType) -> Bytes | None:
    """Return ``count`` elements of a constant as the bytes of ``dtype``; ``None`` if the ``terms`` differ in them.

    Raises:
        InputChanged: an input cannot be read.

    """
    _, first = terms[0]
    of_first, raw = first.layout.dtype, read_block(first, start, count)
    for _, extent in terms[1:]:
        if not equal_numbers(raw, read_block(extent, start, count), of_first, extent.layout.dtype):
            return None
    return as_written(raw, of_first, dtype)


def recompute_pieces(pieces: Sequence[tuple[float, Located]], axis: int, start: int, count: int, dtype: DType) -> Bytes:
    """Return ``count`` elements of tensors side by side along ``axis``, each times its number, as bytes of ``dtype``.

    Raises:
        InputChanged: an input cannot be read.

    """
    widths = [math.prod(extent.layout.shape[axis:]) for _, extent in pieces]
    row, column = np.divmod(np.arange(start, start + count), max(sum(widths), 1))
    values = np.empty(count)
    low = 0
    for (number, extent), width in zip(pieces, widths, strict=True):
        inside = (column >= low) & (column < low + width)
        own = row[inside] * width + column[inside] - low  # consecutive elements of the piece
        if len(own):
            values[inside] = numbers_in(read_block(extent, int(own[0]), len(own)), extent.layout.dtype) * number
        low += width
    with np.errstate(all="ignore"):
        return round_to(values, dtype).raw


@np.errstate(invalid="ignore")  # a signaling NaN
def find_mismatch(expected: Bytes, found: Bytes, dtype: DType) -> Mismatch | None:
    """Compare two pieces bit for bit; NaN matches any NaN: IEEE 754 does not define its bits."""
    bits = f"u{dtype.itemsize}"
    wrong = np.flatnonzero(expected.view(bits) != found.view(bits))
    if dtype.averaged and len(wrong):
        parts = (raw.view(bits)[wrong].view(np.uint8) for raw in (expected, found))
        x, y = (numbers_in(part, dtype).reshape(len(wrong), -1) for part in parts)
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


def _shown(raw: Bytes, index: int, dtype: DType) -> str:
    """Return one element as text; its bits if it is not a number."""
    element = raw[index * dtype.itemsize : (index + 1) * dtype.itemsize]
    if dtype.averaged:
        return " and ".join(repr(float(number)) for number in numbers_in(element, dtype))
    return str(element.view(dtype.torch_name)[0]) if dtype.kind is Kind.INTEGER else f"0x{element.tobytes().hex()}"
