"""How far the checkpoints are from each other, from the sampled pieces: distances, cosines, and which are equal.

Each piece is compared by itself and counts by its elements: the differences relative to its root mean square, the
cosine after its mean was subtracted, so that neither large numbers nor the ones of a LayerNorm decide. Pieces that are
equal in all checkpoints, and elements that are not finite in some, carry no information.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.evidence.pieces import SampledPiece, is_remote
from ema_cli.fold.conversion import Float64, components, decode
from ema_cli.records.plan import Plan

_LEAST_FOR_COSINE = 8
"""Elements of a piece below which its cosine is chance."""
_CONSTANT = 1e-9
"""Relative to the largest element: a smaller deviation from the mean is rounding."""
_MOST_WAITING = 1 << 22
"""Bytes of the matrices that are multiplied together."""


class SampledRelations:
    """Distances, cosines and checksums of the checkpoints ``rows``, measured on ``pieces``.

    Raises:
        InputChanged: a file ends early, or cannot be read.

    """

    def __init__(self, plan: Plan, rows: Sequence[int], pieces: Sequence[SampledPiece]) -> None:
        count = len(rows)
        self._moved = _InnerProducts(count)
        self._directions = _InnerProducts(count)
        self._present = _InnerProducts(count)
        self.elements = 0
        """Finite elements per checkpoint, in pieces that differ."""
        self.checksums = [0] * count
        """Of the sampled bytes of each checkpoint."""
        for i in rows if is_remote(plan, rows) else ():
            for piece in pieces:
                piece.announce(plan, i)
        for piece in pieces:
            self._add(piece, plan, rows)

    @property
    def distances(self) -> Float64:
        """Root mean square of the relative differences, (checkpoints, checkpoints)."""
        gram = self._moved.total()
        own = np.diag(gram)
        return np.asarray(np.sqrt(np.maximum(own[:, None] + own - 2 * gram, 0) / max(self.elements, 1)))

    @property
    def cosines(self) -> Float64:
        """Mean cosine of the pieces, by their elements, (checkpoints, checkpoints); NaN if nothing can be compared."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._directions.total() / self._present.total())

    def _add(self, piece: SampledPiece, plan: Plan, rows: Sequence[int]) -> None:
        raws = [piece.read(plan, i) for i in rows]
        dtypes = [plan.layout(plan.tensors[piece.number], i).dtype for i in rows]
        self.checksums = [zlib_ng.crc32(raw, known) for raw, known in zip(raws, self.checksums, strict=True)]
        if _all_equal(raws):
            return
        values = np.empty((len(rows), piece.count * components(dtypes[0])))
        for row, raw, dtype in zip(values, raws, dtypes, strict=True):
            decode(raw, dtype, row)
        if not np.isfinite(values).all():
            values = values[:, np.isfinite(values).all(axis=0)]
        largest = max(values.max(initial=0), -values.min(initial=0))
        if largest > 0:
            values /= largest
            self._compare(values)

    def _compare(self, values: Float64) -> None:
        """Add a piece: (checkpoints, elements), the largest magnitude 1."""
        count = values.shape[1]
        self.elements += count
        self._moved.add((values - values[-1]) * np.sqrt(values.size / np.einsum("ij,ij->", values, values)))
        if count < _LEAST_FOR_COSINE:
            return
        centred = values - values.mean(axis=1, keepdims=True)
        norms = np.sqrt(np.einsum("ij,ij->i", centred, centred))
        present = norms > _CONSTANT * np.sqrt(count)
        centred *= np.where(present, np.sqrt(count) / np.where(present, norms, 1), 0)[:, None]
        self._directions.add(centred)
        self._present.add(np.sqrt(count) * present[:, None])


class _InnerProducts:
    """The sum of the inner products of the rows of matrices; many small matrices are one product.

    A product of its own for each would start the threads of the library each time.
    """

    def __init__(self, rows: int) -> None:
        self._total = np.zeros((rows, rows))
        self._waiting: list[Float64] = []

    def add(self, matrix: Float64) -> None:
        """Add a matrix, (rows, any number of columns)."""
        self._waiting.append(matrix)
        if sum(one.nbytes for one in self._waiting) > _MOST_WAITING:
            self.total()

    def total(self) -> Float64:
        """Return the sum so far."""
        if self._waiting:
            joined = np.concatenate(self._waiting, axis=1)
            self._total += joined @ joined.T
            self._waiting.clear()
        return self._total


def _all_equal(raws: Sequence[NDArray[np.uint8]]) -> bool:
    return all(len(raw) == len(raws[0]) and bool((raw == raws[0]).all()) for raw in raws[1:])


def groups_of(checksums: Iterable[int]) -> list[list[int]]:
    """Return the rows with equal checksums, in groups of two or more."""
    found: dict[int, list[int]] = {}
    for row, checksum in enumerate(checksums):
        found.setdefault(checksum, []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]
