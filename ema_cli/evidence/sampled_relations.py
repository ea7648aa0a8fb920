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

from ema_cli.evidence.pieces import SampledPiece
from ema_cli.fold.conversion import Float64, components, decode
from ema_cli.records.plan import Plan

_LEAST_FOR_COSINE = 8
"""Elements of a piece below which its cosine is chance."""
_CONSTANT = 1e-9
"""Relative to the largest element: a smaller deviation from the mean is rounding."""


class SampledRelations:
    """Distances, cosines and checksums of the checkpoints ``rows``, measured on ``pieces``.

    Raises:
        InputChanged: a file ends early, or cannot be read.

    """

    def __init__(self, plan: Plan, rows: Sequence[int], pieces: Sequence[SampledPiece]) -> None:
        count = len(rows)
        self._squares = np.zeros((count, count))
        self._cosines: list[Float64] = []
        self._sizes: list[int] = []
        self.elements = 0
        """Finite elements per checkpoint, in pieces that differ."""
        self.checksums = [0] * count
        """Of the sampled bytes of each checkpoint."""
        for i in rows:
            for piece in pieces:
                piece.announce(plan, i)
        for piece in pieces:
            self._add(piece, plan, rows)

    @property
    def distances(self) -> Float64:
        """Root mean square of the relative differences, (checkpoints, checkpoints)."""
        return np.asarray(np.sqrt(self._squares / max(self.elements, 1)))

    @property
    def cosines(self) -> Float64:
        """Median cosine of the pieces, by their elements, (checkpoints, checkpoints); NaN if nothing is comparable."""
        if not self._cosines:
            return np.full_like(self._squares, np.nan)
        cosines = np.stack(self._cosines)
        order = cosines.argsort(axis=0)  # NaN comes last
        cosines = np.take_along_axis(cosines, order, axis=0)
        sizes = np.where(np.isnan(cosines), 0, np.array(self._sizes)[order]).cumsum(axis=0)
        middle = (sizes >= sizes[-1] / 2).argmax(axis=0)
        return np.asarray(np.take_along_axis(cosines, middle[None], axis=0)[0])

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
        moved = values - values[-1]
        gram = moved @ moved.T
        own = np.diag(gram)
        scale = values.size / np.einsum("ij,ij->", values, values)
        self._squares += np.maximum(own[:, None] + own - 2 * gram, 0) * scale
        if count >= _LEAST_FOR_COSINE:
            self._cosines.append(_centred_cosines(values))
            self._sizes.append(count)


def _centred_cosines(values: Float64) -> Float64:
    """Return the cosines of the rows after their means were subtracted; NaN for a row that is constant."""
    centred = values - values.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ij,ij->i", centred, centred))
    centred /= np.where(norms > _CONSTANT * np.sqrt(values.shape[1]), norms, np.nan)[:, None]
    return np.asarray(centred @ centred.T)


def _all_equal(raws: Sequence[NDArray[np.uint8]]) -> bool:
    return all(len(raw) == len(raws[0]) and bool((raw == raws[0]).all()) for raw in raws[1:])


def groups_of(checksums: Iterable[int]) -> list[list[int]]:
    """Return the rows with equal checksums, in groups of two or more."""
    found: dict[int, list[int]] = {}
    for row, checksum in enumerate(checksums):
        found.setdefault(checksum, []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]
