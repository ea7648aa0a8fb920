"""Norm, drift and cosine of each averaged tensor, from sums over its blocks.

The products are summed in rows of a fixed length, and the sums of the rows exactly, except for the last few of 106
bits: so the numbers depend neither on which thread was first nor on how a tensor was cut into blocks, as long as every
block begins with a row. The sums of a tensor are freed as soon as it is complete.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import Bytes, Float64, components, decode
from ema_cli.fold.kernel import CODES, kernel
from ema_cli.fold.schedule import Block, block_count
from ema_cli.records.fold_results import TensorStatistics
from ema_cli.records.plan import ROW_ELEMENTS, Plan

Numbers = NDArray[np.int64]

_UNDEFINED = TensorStatistics(norm=None, drift=None, cosine=None)
_SUMS = 3
"""Per average: |average|^2, |average - last|^2, |last|^2."""
_COLUMNS = 2 * _SUMS
_IN_ROW = 16
"""Columns of a row of squares."""
_ROWS_IN_STRIP = 64
_LARGEST_RATIO = 1e9
"""If one norm is more than this many times the other, their cosine is not reported."""


def squares(average: Float64, raw: Bytes, dtype: DType) -> Float64:
    """Return the sums of squares of an average, of its difference to a checkpoint, and of that checkpoint: (3, 2).

    The second number of each is what is lost by rounding the first.

    Element i of a row is added to column i % 16, and the columns of a row are added in halves, which every processor
    does in the same order.

    Args:
        average: (elements,) float64.
        raw: the same elements of the checkpoint, as bytes.
        dtype: of the checkpoint.

    """
    rows = np.empty((_SUMS, -(-len(average) // ROW_ELEMENTS)))
    if kernel is not None:
        kernel.squares(average, raw, CODES[dtype.name], rows)
    else:
        _fill_with_numpy(rows, average, raw, dtype)
    return np.asarray(add_rows(rows, max(1, rows.shape[1]))[:, 0])


def _fill_with_numpy(rows: Float64, average: Float64, raw: Bytes, dtype: DType) -> None:
    """Fill the rows strip by strip, in memory that stays in the cache.

    The rows of a strip are interleaved first, so that numpy adds long arrays instead of 16 numbers at a time.
    """
    itemsize = dtype.itemsize // components(dtype)
    strips = np.empty((_SUMS, ROW_ELEMENTS // _IN_ROW, min(rows.shape[1], _ROWS_IN_STRIP), _IN_ROW))
    last = np.empty(min(len(average), _ROWS_IN_STRIP * ROW_ELEMENTS))
    for first in range(0, rows.shape[1], _ROWS_IN_STRIP):
        stop = min(first + _ROWS_IN_STRIP, rows.shape[1])
        here = slice(first * ROW_ELEMENTS, min(stop * ROW_ELEMENTS, len(average)))
        stored, strip = last[: here.stop - here.start], strips[:, :, : stop - first]
        decode(raw[here.start * itemsize : here.stop * itemsize], dtype, stored)
        strip[0] = _interleaved(average[here])
        strip[2] = _interleaved(stored)
        np.subtract(strip[0], strip[2], out=strip[1])
        np.multiply(strip, strip, out=strip)
        rows[:, first:stop] = _add_halves(np.add.reduce(strip, axis=1))


def _interleaved(values: Float64) -> Float64:
    """Return a view (parts of a row, rows, 16) of numbers, the last row filled up with zeros."""
    if missing := -len(values) % ROW_ELEMENTS:
        values = np.concatenate((values, np.zeros(missing)))
    return values.reshape(-1, ROW_ELEMENTS // _IN_ROW, _IN_ROW).swapaxes(0, 1)


def add_rows(rows: Float64, in_block: int) -> Float64:
    """Return the sums of each block and their remainders: of (k, rows) float64, (k, blocks, 2).

    A block has ``in_block`` rows, the last of them maybe fewer; if there are no rows, there is one, of zeros.
    """
    height, width = rows.shape
    sums = np.zeros((height, max(1, -(-width // in_block)), 2))
    if kernel is not None and width:
        kernel.exact_sums(rows, width, in_block, sums)
    else:
        for row, out in zip(rows.tolist(), sums, strict=True):
            out[...] = [_exact_sum(row[first : first + in_block]) for first in range(0, max(1, width), in_block)]
    return sums


def _add_columns(products: Float64) -> Float64:
    """Return the sum of each row of (rows, multiple of 16) float64."""
    return _add_halves(np.add.reduce(products.reshape(len(products), -1, _IN_ROW), axis=1))


def _add_halves(columns: Float64) -> Float64:
    """Return the sums over the last axis, which is 16 long."""
    while (width := columns.shape[-1] // 2) > 0:
        columns = columns[..., :width] + columns[..., width:]
    return columns[..., 0]


def squares_of_each(average: Float64, raw: Bytes, dtype: DType, bounds: Numbers) -> Float64:
    """Return the sums of ``squares``, correctly rounded, for each of many small tensors: (3, tensors) float64.

    ``bounds`` has the first element of each tensor, and the number of all; the other arguments are as for ``squares``.
    """
    last = np.empty(len(average))
    decode(raw, dtype, last)
    sizes = np.diff(bounds)
    sums = np.empty((_SUMS, len(sizes)))
    for values, of_tensors in zip((average, average - last, last), sums, strict=True):
        products = values * values
        for size in set(sizes.tolist()):
            chosen = np.flatnonzero(sizes == size)
            width = _IN_ROW if size <= ROW_ELEMENTS else ROW_ELEMENTS
            padded = np.zeros((len(chosen), -(-size // width) * width))
            padded[:, :size] = products[bounds[chosen, None] + np.arange(size)]
            rows = _add_columns(padded.reshape(-1, min(padded.shape[1], ROW_ELEMENTS))).reshape(len(chosen), -1)
            of_tensors[chosen] = rows[:, 0] if rows.shape[1] == 1 else [_add_up(of_one) for of_one in rows.tolist()]
    return sums


def _exact_sum(values: Sequence[float]) -> tuple[float, float]:
    total = _add_up(values)
    return (total, math.fsum([*values, -total])) if math.isfinite(total) else (total, 0.0)


def _add_up(values: Sequence[float]) -> float:
    """Return the correctly rounded sum, or infinity or NaN, where ``fsum`` would raise."""
    rough = sum(values)
    return math.fsum(values) if math.isfinite(rough) else rough


class Statistics:
    """Collects the sums of all tensors of all averages; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._open: dict[int, tuple[list[array[float]], int]] = {}
        self._nonfinite: set[tuple[int, int]] = set()
        self._kept: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self.by_average: list[list[TensorStatistics]] = [[_UNDEFINED] * len(plan.tensors) for _ in plan.outputs]

    def add(self, block: Block, sums: Float64) -> None:
        """Add the sums of blocks: |average|^2, |average - last|^2 and |last|^2, as (averages, blocks, 3, 2) float64."""
        rows = [array("d", of_average.tobytes()) for of_average in sums]
        self.add_parts(block.number, (block.part, block.part + block.parts), rows)

    def add_tensors(self, first: int, k: int, sums: Float64) -> None:
        """Add neighboring tensors from ``first`` on to average k, whole: their sums are (3, tensors) float64."""
        found = _describe_each(sums)
        with self._lock:
            self.by_average[k][first : first + len(found)] = found

    def add_parts(self, number: int, parts: tuple[int, int], rows: Sequence[array[float]]) -> None:
        """Add the sums of blocks that are one after the other, from the first to the one before the last of ``parts``.

        ``rows`` has, for each average, the sums of these blocks.
        """
        first, stop = parts
        with self._lock:
            blocks = block_count(self._plan, self._plan.tensors[number])
            if number not in self._open:
                self._open[number] = [array("d", bytes(8 * _COLUMNS * blocks)) for _ in rows], blocks
            sums, missing = self._open[number]
            for k, values in enumerate(rows):
                sums[k][first * _COLUMNS : stop * _COLUMNS] = values
            self._open[number] = sums, missing - (stop - first)
            if missing == stop - first:
                del self._open[number]
                for k, values_of_blocks in enumerate(sums):
                    found, key = _describe(values_of_blocks), (k, number)
                    finite, kept = key not in self._nonfinite, key in self._kept
                    self.by_average[k][number] = replace(found, finite=finite, kept=kept)

    def sums(self, number: int, parts: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
        """Return the sums of some blocks of a tensor that is not complete, per average; empty if it has none."""
        with self._lock:
            found, _ = self._open.get(number, ([], 0))
            return tuple(tuple(row[parts[0] * _COLUMNS : parts[1] * _COLUMNS]) for row in found)

    def marks(self, number: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Return for each average whether the tensor was marked as not finite, and as kept."""
        averages = range(len(self.by_average))
        return tuple((k, number) in self._nonfinite for k in averages), tuple(
            (k, number) in self._kept for k in averages
        )

    def mark_nonfinite(self, k: int, number: int) -> None:
        """Record that average k of a tensor holds NaN or infinity. Call it before ``add`` for the block."""
        with self._lock:
            self._nonfinite.add((k, number))

    def mark_kept(self, k: int, number: int) -> None:
        """Record that average k of a constant tensor is not what its sum would be. Call it before ``add``."""
        with self._lock:
            self._kept.add((k, number))


def add_spreads(by_average: Sequence[list[TensorStatistics]], spreads: Float64, measured: Sequence[bool]) -> None:
    """Set the spread of each tensor that was measured.

    ``spreads`` is (averages, tensors) float64, like ``by_average``; ``measured`` has one value per tensor.
    """
    for row, values in zip(by_average, spreads.tolist(), strict=True):
        for number in compress(range(len(row)), measured):
            found = row[number]
            row[number] = TensorStatistics(
                finite=found.finite,
                kept=found.kept,
                norm=found.norm,
                drift=found.drift,
                cosine=found.cosine,
                spread=values[number],
            )


def _describe(sums: array[float]) -> TensorStatistics:
    if not all(map(math.isfinite, sums)):
        return _UNDEFINED
    squares = [_add_up([*sums[i::_COLUMNS], *sums[i + 1 :: _COLUMNS]]) for i in range(0, _COLUMNS, 2)]
    if not all(map(math.isfinite, squares)):
        return _UNDEFINED
    average, difference, last = map(math.sqrt, squares)
    drift = difference / last if last > 0 else math.inf
    return TensorStatistics(
        norm=average,
        drift=drift if math.isfinite(drift) else None,
        cosine=_cosine(average, difference, last),
    )


def _describe_each(sums: Float64) -> list[TensorStatistics]:
    """Return the statistics of tensors with the sums (3, tensors)."""
    average, difference, last = np.sqrt(sums)
    drift = np.where(last > 0, difference / last, np.inf)
    cosine = (average / last + last / average - (difference / average) * (difference / last)) / 2
    is_far = np.minimum(average, last) * _LARGEST_RATIO <= np.maximum(average, last)
    columns = (np.isfinite(sums).all(axis=0), average, drift, np.isfinite(drift), np.clip(cosine, -1, 1), ~is_far)
    return [
        TensorStatistics(
            finite=True,
            kept=False,
            norm=norm,
            drift=drift if has_drift else None,
            cosine=cosine if has_cosine else None,
            spread=None,
        )
        if defined
        else _UNDEFINED
        for defined, norm, drift, has_drift, cosine, has_cosine in zip(*(one.tolist() for one in columns), strict=True)
    ]


def _cosine(average: float, difference: float, last: float) -> float | None:
    """Return ``<a, l> / |a| |l|`` by the law of cosines, which saves a pass over the tensor.

    Its error is one rounding times the ratio of the norms, so it is undefined when they are too far apart.
    """
    if min(average, last) * _LARGEST_RATIO <= max(average, last):
        return None
    cosine = (average / last + last / average - (difference / average) * (difference / last)) / 2
    return max(-1.0, min(1.0, cosine))  # the rounding can push it just beyond
