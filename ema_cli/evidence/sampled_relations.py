"""How far the checkpoints are from each other, from the sampled pieces: distances, cosines, and which are equal.

Each tensor is compared by itself and counts by its sampled elements: the differences relative to its root mean square,
the cosine after its mean was subtracted, so that neither a large tensor nor the ones of a LayerNorm decide. Tensors
that are equal in all checkpoints, and elements that are not finite in some, carry no information.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.evidence.pieces import SampledPiece, is_remote
from ema_cli.fold.conversion import Float64, components, decode
from ema_cli.records.plan import Plan

_LEAST_FOR_COSINE = 8
"""Elements of a tensor below which its cosine is chance."""
_CONSTANT = 1e-9
"""Relative to the largest element: a smaller deviation from the mean is rounding."""


class SampledRelations:
    """Distances, cosines and checksums of the checkpoints ``rows``, measured on ``pieces``.

    Raises:
        InputChanged: a file ends early, or cannot be read.

    """

    def __init__(self, plan: Plan, rows: Sequence[int], pieces: Sequence[SampledPiece]) -> None:
        count = len(rows)
        self.elements = 0
        """Finite elements per checkpoint, in tensors that differ."""
        self._squares = np.zeros((count, count))
        self._products = np.zeros((count, count))
        self._compared = np.zeros((count, count))
        self.checksums = [0] * count
        """Of the sampled bytes of each checkpoint."""
        for i in rows if is_remote(plan, rows) else ():
            for piece in pieces:
                piece.announce(plan, i)
        for _, group in groupby(pieces, lambda piece: piece.number):
            self._add_tensor(plan, rows, list(group))

    @property
    def distances(self) -> Float64:
        """Root mean square of the relative differences, (checkpoints, checkpoints)."""
        return np.asarray(np.sqrt(self._squares / max(self.elements, 1)))

    @property
    def cosines(self) -> Float64:
        """Mean cosine of the tensors, by their elements, (checkpoints, checkpoints); NaN if nothing can be compared."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._products / self._compared)

    def _add_tensor(self, plan: Plan, rows: Sequence[int], pieces: Sequence[SampledPiece]) -> None:
        tensor = plan.tensors[pieces[0].number]
        raws = [_joined([piece.read(plan, i) for piece in pieces]) for i in rows]
        dtypes = [plan.layout(tensor, i).dtype for i in rows]
        self.checksums = [zlib_ng.crc32(raw, known) for raw, known in zip(raws, self.checksums, strict=True)]
        if _all_equal(raws):
            return
        values = np.empty((len(rows), sum(piece.count for piece in pieces) * components(tensor.dtype)))
        for row, raw, dtype in zip(values, raws, dtypes, strict=True):
            decode(raw, dtype, row)
        if not np.isfinite(values).all():
            values = values[:, np.isfinite(values).all(axis=0)]
        largest = max(values.max(initial=0), -values.min(initial=0))
        if largest > 0:
            values /= largest
            self._compare(values)

    def _compare(self, values: Float64) -> None:
        """Add a tensor: (checkpoints, elements), the largest magnitude 1."""
        count = values.shape[1]
        self.elements += count
        moved = values - values[-1]
        gram = moved @ moved.T
        own = np.diag(gram)
        self._squares += np.maximum(own[:, None] + own - 2 * gram, 0) * (values.size / np.vdot(values, values))
        centred = values - values.mean(axis=1, keepdims=True)
        norms = np.sqrt(np.einsum("ij,ij->i", centred, centred))
        present = norms > _CONSTANT * np.sqrt(count)
        if count >= _LEAST_FOR_COSINE:
            centred /= np.where(present, norms, 1)[:, None]
            both = np.outer(present, present)
            self._products += count * np.where(both, centred @ centred.T, 0)
            self._compared += count * both


def _all_equal(raws: Sequence[NDArray[np.uint8]]) -> bool:
    return all(len(raw) == len(raws[0]) and bool((raw == raws[0]).all()) for raw in raws[1:])


def _joined(raws: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return raws[0] if len(raws) == 1 else np.concatenate(raws)


def groups_of(checksums: Iterable[int]) -> list[list[int]]:
    """Return the rows with equal checksums, in groups of two or more."""
    found: dict[int, list[int]] = {}
    for row, checksum in enumerate(checksums):
        found.setdefault(checksum, []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]
