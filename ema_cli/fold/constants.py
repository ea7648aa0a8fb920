"""Constants: tensors that are the same in all checkpoints of an average are written as they are stored.

The weights sum to one, so the average of equal numbers is that number, also where the sum in float64 is not: of
infinity and NaN, and of numbers whose last digit or midpoint the rounding of the sum would move. Blocks whose CRC-32 is
the same in all checkpoints are candidates; a tensor is compared, byte by byte, only if its sum gave something else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence

from ema_cli.dtypes import DType
from ema_cli.fold.conversion import Bytes, numbers_in, round_to
from ema_cli.records.plan import Plan
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import announce, read_block

_ROUNDING = 1e-9
"""Weights that sum to one are at most this far from it."""
_ROUND_BYTES = 1 << 23
"""Bytes that are requested at a time, of all checkpoints together."""
_LEAST_ELEMENTS = 1 << 13


class Constants:
    """Which tensors are constant in which average. Each is compared at most once; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = [_rows_of(output.weighting.weights, plan.used) for output in plan.outputs]
        self._known: dict[tuple[int, tuple[int, ...]], bool] = {}
        self._lock = threading.Lock()

    def rows(self, k: int) -> tuple[int, ...]:
        """Return the checkpoints of average k, as numbers among those read; none if it cannot have constants."""
        return self._rows[k]

    def row_of(self, k: int, number: int, crcs: Sequence[int], *, finite: bool) -> int | None:
        """Return a checkpoint with the bytes of average k, as a number among those read; ``None`` if they may differ.

        ``crcs`` are those of a block of the tensor ``number`` in the checkpoints read. Blocks of different types have
        different checksums, so without finite numbers they are candidates, too.
        """
        rows = self._rows[k]
        if not rows:
            return None
        if len({crcs[row] for row in rows}) == 1:
            return rows[-1]
        mixed = not finite and len({self._extent(number, row).layout.dtype for row in rows}) > 1
        return rows[-1] if mixed else None

    def includes(self, k: int, number: int, raise_if_stopping: Callable[[], None]) -> bool:
        """Return whether the whole tensor is equal in all checkpoints of average k; the first call reads it again.

        Args:
            k: the number of the average.
            number: the number of the tensor.
            raise_if_stopping: raises if the fold is over because another thread failed.

        Raises:
            InputChanged: an input could not be read to its end.

        """
        with self._lock:
            key = number, self._rows[k]
            if key not in self._known:
                self._known[key] = self._are_equal(number, self._rows[k], raise_if_stopping)
            return self._known[key]

    def _are_equal(self, number: int, rows: Sequence[int], raise_if_stopping: Callable[[], None]) -> bool:
        extents = [self._extent(number, row) for row in rows]
        return all(_same(pieces, extents) for pieces in _pieces(extents, raise_if_stopping))

    def _extent(self, number: int, row: int) -> Located:
        return self._plan.extent(self._plan.tensors[number], self._plan.used[row])


def _pieces(extents: Sequence[Located], raise_if_stopping: Callable[[], None]) -> Iterator[list[Bytes]]:
    """Yield the tensor piece by piece, each from all checkpoints."""
    largest = max(extent.layout.dtype.itemsize for extent in extents)
    step = max(_LEAST_ELEMENTS, _ROUND_BYTES // (largest * len(extents)))
    elements = extents[0].layout.elements
    for start in range(0, elements, step):
        raise_if_stopping()
        count = min(step, elements - start)
        for extent in extents:
            announce(extent, start, count)
        yield [read_block(extent, start, count) for extent in extents]


def as_written(raw: Bytes, stored: DType, written: DType) -> Bytes:
    """Return elements of the type ``stored`` as elements of the type ``written``."""
    return raw if stored is written else round_to(numbers_in(raw, stored), written).raw


def equal_numbers(a: Bytes, b: Bytes, of_a: DType, of_b: DType) -> bool:
    """Whether two pieces have the same bits; of different types, the same bits as float64, which holds all exactly."""
    if of_a is not of_b:
        a, b = numbers_in(a, of_a).view("u1"), numbers_in(b, of_b).view("u1")
    return a.tobytes() == b.tobytes()


def _same(pieces: Sequence[Bytes], extents: Sequence[Located]) -> bool:
    first, of_first = pieces[0], extents[0].layout.dtype
    others = zip(pieces[1:], extents[1:], strict=True)
    return all(equal_numbers(first, raw, of_first, extent.layout.dtype) for raw, extent in others)


def _rows_of(weights: Sequence[float], used: Sequence[int]) -> tuple[int, ...]:
    """Return the checkpoints of an average, as numbers among those read; none if it cannot have constants.

    One checkpoint alone shows nothing, and weights that do not sum to one change a number that is the same everywhere.
    """
    rows = tuple(row for row, i in enumerate(used) if weights[i] != 0)
    return rows if len(rows) > 1 and abs(math.fsum(weights) - 1) <= _ROUNDING else ()
