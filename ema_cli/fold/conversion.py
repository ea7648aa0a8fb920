"""Bytes of a tensor -> float64 -> bytes of the output. The first step is exact, the second rounds once.

Every element type that is averaged is a subset of float64, so decoding loses nothing. Encoding rounds to nearest, ties
to even. numpy rounds float64 to float32 and float16 directly. For narrower types the libraries go through float32 and
round twice, which is wrong for about half of the values near a midpoint; rounding to float32 *to odd* first keeps the
information that the second rounding needs (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums").
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import BY_NAME, DType, Kind
from ema_cli.fold.kernel import CODES, kernel

Bytes = NDArray[np.uint8]
Float64 = NDArray[np.float64]

LARGEST = {
    "F64": sys.float_info.max,
    "C64": (2 - 2**-23) * 2.0**127,
    "F32": (2 - 2**-23) * 2.0**127,
    "BF16": (2 - 2**-7) * 2.0**127,
    "F16": 65504.0,
    "F8_E5M2FNUZ": 57344.0,
    "F8_E4M3FNUZ": 240.0,
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
}
"""The largest finite number of each averaged element type."""
_DIRECT = ("F64", "C64", "F32", "F16")
_HIGHEST_BIT = 0x8000
_LOWER_HALF = 0 if sys.byteorder == "little" else 1


class _NumpyTypes(Mapping[str, np.dtype]):
    def __getitem__(self, name: str) -> np.dtype:
        return _numpy_type(name)

    def __iter__(self) -> Iterator[str]:
        return iter(LARGEST)

    def __len__(self) -> int:
        return len(LARGEST)


@cache
def _numpy_type(name: str) -> np.dtype:
    if components(BY_NAME[name]) > 1:
        return np.dtype(np.float32)
    if name not in _DIRECT:
        import ml_dtypes  # noqa: PLC0415 - a fiftieth of a short run; most types are those of numpy

        found: np.dtype = np.dtype(getattr(ml_dtypes, BY_NAME[name].torch_name))
        return found
    return np.dtype(BY_NAME[name].torch_name)


NUMPY_TYPES = _NumpyTypes()
"""The numpy type of one component of each averaged element type."""


def components(dtype: DType) -> int:
    """Return how many real numbers an element has: a complex number is averaged as a pair."""
    return 2 if dtype.kind is Kind.COMPLEX else 1


def decode(raw: Bytes, dtype: DType, out: Float64) -> None:
    """Fill ``out`` with the numbers in ``raw``."""
    if dtype.itemsize == 1:
        np.take(_table(dtype.name), raw, out=out, mode="clip")  # the cast itself is thirty times slower
    else:
        np.copyto(out, raw.view(NUMPY_TYPES[dtype.name]))


def numbers_in(raw: Bytes, dtype: DType) -> Float64:
    """Return the numbers in ``raw``, in memory of their own."""
    values = np.empty(len(raw) // dtype.itemsize * components(dtype))
    decode(raw, dtype, values)
    return values


@cache
def _table(name: str) -> Float64:
    """Return the value of each of the 256 codes of an 8-bit type."""
    return np.arange(256, dtype=np.uint8).view(NUMPY_TYPES[name]).astype(np.float64)


class Rounded(NamedTuple):
    """Numbers as bytes of their element type."""

    raw: Bytes
    fits: bool
    """Whether all numbers are finite and their absolute values below the largest number of the type."""


def round_to(values: Float64, dtype: DType) -> Rounded:
    """Round ``values`` to ``dtype``. A value out of range becomes infinite (NaN if there is no infinity).

    Every NaN becomes the same one: IEEE 754 does not say which NaN a sum of two is, and processors differ in it.
    """
    rounded = _round(values, dtype)
    if not rounded.fits and np.isnan(values).any():
        rounded = _round(np.where(np.isnan(values), np.nan, values), dtype)
    return rounded


def _round(values: Float64, dtype: DType) -> Rounded:
    largest = LARGEST[dtype.name]
    if kernel is not None:
        raw = np.empty(len(values) * dtype.itemsize // components(dtype), dtype=np.uint8)
        return Rounded(raw, fits=kernel.round_to(values, CODES[dtype.name], raw, largest))
    fits = bool(values.max(initial=0) < largest and values.min(initial=0) > -largest)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name in _DIRECT:
            return Rounded(values.astype(NUMPY_TYPES[dtype.name]).view(np.uint8), fits)
        narrow = _to_float32_for_bfloat16(values) if dtype.name == "BF16" else _to_float32_odd(values)
        return Rounded(narrow.astype(NUMPY_TYPES[dtype.name]).view(np.uint8), fits)


def _to_float32_for_bfloat16(values: Float64) -> NDArray[np.float32]:
    """Round to float32 in the ordinary way, and to odd only where that gives a midpoint of two bfloat16.

    bfloat16 is the upper half of float32, so a midpoint has exactly the highest of the lower bits set; everywhere else
    rounding twice gives the same result as rounding once.
    """
    nearest = values.astype(np.float32)
    midpoints = np.flatnonzero(nearest.view(np.uint16)[_LOWER_HALF::2] == _HIGHEST_BIT)
    if len(midpoints):
        nearest[midpoints] = _to_float32_odd(values[midpoints])
    return nearest


def _to_float32_odd(values: Float64) -> NDArray[np.float32]:
    """Round to float32 toward zero, then set the last bit of every inexact result."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).view(np.uint8)  # the magnitude is the low 31 bits
    inexact = (back != values) & ~np.isnan(values)
    bits |= inexact.view(np.uint8)
    return nearest
