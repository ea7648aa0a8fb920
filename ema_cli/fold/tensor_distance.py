"""The distance between two tensors of one shape, block by block, in memory that does not grow with them.

Input -> output: two extents -> ``Sums``. Floats are compared in float64, which holds each of them exactly, complex
numbers as pairs of floats; integers and bools as integers. Two elements differ if their bits differ; if the types
differ, the bits of the float64 numbers are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType, Kind
from ema_cli.fold.conversion import Bytes, Float64, components, decode
from ema_cli.records.plan import ROW_ELEMENTS
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_elements

_BLOCK_ELEMENTS = 1 << 16
_LARGEST_ITEM_BYTES = 8
_LEAST_SQUARE = 1e-280
"""A sum of squares below this may have lost digits, and is not used."""
_WHOLE = (Kind.INTEGER, Kind.BOOL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The sums that give the distance between some elements a and b."""

    differing: int = 0
    """Elements with different bits."""
    largest: float = 0
    """``max |a - b|``, exact for integers; NaN if it is undefined. Elements with equal bits have distance 0."""
    squared_a: float = 0.0
    """``||a||^2``; this and the following sums are only filled for floats and complex numbers."""
    squared_b: float = 0.0
    product: float = 0.0
    """``<a, b>``."""
    squared_difference: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            differing=self.differing + other.differing,
            largest=_larger(self.largest, other.largest),
            squared_a=self.squared_a + other.squared_a,
            squared_b=self.squared_b + other.squared_b,
            product=self.product + other.product,
            squared_difference=self.squared_difference + other.squared_difference,
        )

    @property
    def max_abs(self) -> float | None:
        """``max |a - b|``, ``None`` if it is not finite."""
        return self.largest if math.isfinite(self.largest) else None

    @property
    def relative_l2(self) -> float | None:
        """``||a - b|| / ||b||``, ``None`` where b is zero, or where squares leave the range of float64."""
        if not self.squared_b > 0 or self._vanishes(self.squared_b, self.squared_difference):
            return None
        ratio = math.sqrt(self.squared_difference) / math.sqrt(self.squared_b)
        return ratio if math.isfinite(ratio) and math.isfinite(self.squared_b) else None

    def _vanishes(self, *squares: float) -> bool:
        """Whether the numbers are so small that their squares have lost digits."""
        return self.largest > 0 and any(square < _LEAST_SQUARE for square in squares)

    @property
    def cosine(self) -> float | None:
        """``<a, b> / ||a|| ||b||``, ``None`` where a or b is zero, or where squares leave the range of float64."""
        norms = math.sqrt(self.squared_a) * math.sqrt(self.squared_b)
        if self._vanishes(self.squared_a, self.squared_b, self.squared_difference):
            return None
        if not (norms > 0 and math.isfinite(norms) and math.isfinite(self.product)):
            return None
        if self.squared_difference == 0:
            return 1.0
        return max(-1.0, min(1.0, self.product / norms))  # the rounding can push it just beyond


def comparable(a: DType, b: DType) -> bool:
    """Whether the numbers of two types can be compared: floats with floats, whole numbers with whole numbers."""
    floats = a.averaged and b.averaged and a.kind is b.kind
    return a is b or floats or (a.kind in _WHOLE and b.kind in _WHOLE)


class Meter:
    """Measures pairs of tensors with one set of buffers."""

    def __init__(self, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._on_bytes = on_bytes
        self._raw = np.empty((2, _BLOCK_ELEMENTS * _LARGEST_ITEM_BYTES), dtype=np.uint8)
        self._values = np.empty((3, _BLOCK_ELEMENTS * 2))

    def measure(self, a: Located, b: Located) -> Sums:
        """Compare two tensors of one shape with ``comparable`` types.

        Raises:
            InputChanged: one of them cannot be read.

        """
        total = Sums()
        elements = a.layout.elements
        with np.errstate(all="ignore"):  # infinity - infinity, and squares that overflow
            for start in range(0, elements, _BLOCK_ELEMENTS):
                count = min(_BLOCK_ELEMENTS, elements - start)
                raw_a, raw_b = (self._read(row, extent, start, count) for row, extent in enumerate((a, b)))
                total += self._block(raw_a, raw_b, a.layout.dtype, b.layout.dtype)
                self._on_bytes(len(raw_a) + len(raw_b))
        return total

    def _read(self, row: int, extent: Located, start: int, count: int) -> Bytes:
        raw = self._raw[row, : count * extent.layout.dtype.itemsize]
        read_elements(extent, start, raw)
        return raw

    def _block(self, raw_a: Bytes, raw_b: Bytes, a: DType, b: DType) -> Sums:
        if a.averaged:
            return self._floats(raw_a, raw_b, a, b)
        if a is b and a.kind not in _WHOLE:
            differing = _count_unequal(raw_a, raw_b, a)
            return Sums(differing=differing, largest=math.nan if differing else 0)
        gaps = _gaps(_as_integers(raw_a, a), _as_integers(raw_b, b))
        return Sums(differing=int(np.count_nonzero(gaps)), largest=int(gaps.max()))

    def _floats(self, raw_a: Bytes, raw_b: Bytes, a: DType, b: DType) -> Sums:
        count = len(raw_a) // a.itemsize * components(a)
        x, y, difference = self._values[:, :count]
        decode(raw_b, b, y)
        squared_b = _dot(y, y)
        if a is b and np.array_equal(raw_a, raw_b):
            return Sums(squared_a=squared_b, squared_b=squared_b, product=squared_b)
        decode(raw_a, a, x)
        unequal = x.view(np.uint64) != y.view(np.uint64)
        np.subtract(x, y, out=difference)
        difference[~unequal] = 0  # infinities and NaN that are the same
        return Sums(
            differing=_count_unequal(raw_a, raw_b, a) if a is b else int(np.count_nonzero(unequal)),
            largest=float(np.max(np.abs(difference))),
            squared_a=_dot(x, x),
            squared_b=squared_b,
            product=_dot(x, y),
            squared_difference=_dot(difference, difference),
        )


def _dot(a: Float64, b: Float64) -> float:
    """Return the inner product, in rows that are too short for BLAS to start threads of its own."""
    whole = len(a) - len(a) % ROW_ELEMENTS
    rows = np.vecdot(a[:whole].reshape(-1, ROW_ELEMENTS), b[:whole].reshape(-1, ROW_ELEMENTS))
    return float(np.sum(rows) + np.vecdot(a[whole:], b[whole:]))


def _count_unequal(raw_a: Bytes, raw_b: Bytes, dtype: DType) -> int:
    """Return how many elements of one type differ in their bits."""
    bits = f"u{dtype.itemsize}"
    return int(np.count_nonzero(raw_a.view(bits) != raw_b.view(bits)))


def _as_integers(raw: Bytes, dtype: DType) -> NDArray[Any]:
    return raw if dtype.kind is Kind.BOOL else raw.view(dtype.torch_name)


def _gaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return ``|a - b|`` exactly."""
    common = np.result_type(a, b)
    if common.kind == "f":  # no integer type of numpy holds both int64 and uint64
        return np.asarray(np.abs(a.astype(object) - b.astype(object)))
    x, y = a.astype(common, copy=False), b.astype(common, copy=False)
    gaps: NDArray[Any] = np.where(x > y, x - y, y - x)
    return gaps.view(f"u{common.itemsize}")  # a difference that wraps around is right as an unsigned number


def _larger(x: float, y: float) -> float:
    """Return the larger of two numbers; NaN if one of them is."""
    return x if math.isnan(x) or x >= y else y
