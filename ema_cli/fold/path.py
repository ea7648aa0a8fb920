"""From inner products to what they say of a run: distances, the path in a plane, how it turned.

Input -> output: the Gram matrix of N checkpoints measured from the last, and the weights of K averages -> a record of
plain numbers. An average is a combination of the checkpoints, so its place follows from the same matrix.
"""

from __future__ import annotations

import numpy as np

from ema_cli.findings import RunGeometry
from ema_cli.fold.decode import Float64
from ema_cli.fold.geometry import Geometry

_DIMENSIONS = 2
_ROUNDING = 1e-9
"""A sum of weights that is further from one is no average: it lies nowhere among the checkpoints."""
_NOTHING = 1e-12
"""Of the largest eigenvalue: below it a direction is rounding."""


def describe_run(geometry: Geometry, used: tuple[int, ...]) -> RunGeometry | None:
    """Return the geometry of a run, ``None`` if it is not finite.

    Args:
        geometry: what was gathered.
        used: the inputs that were read, in fold order.

    """
    with np.errstate(all="ignore"):  # of checkpoints that are not finite
        gram = geometry.gram()
    if not np.isfinite(gram).all():
        return None
    weights = [w if abs(w.sum() - 1) < _ROUNDING else None for w in geometry.weights]
    path, averages, explained = _plane(gram, weights)
    steps = gram[1:, 1:] - gram[1:, :-1] - gram[:-1, 1:] + gram[:-1, :-1]  # <d_i, d_j> of d_i = theta_(i+1) - theta_i
    return RunGeometry(
        inputs=used,
        pairwise_distance=_rows(_distances(gram)),
        average_distance=tuple(None if w is None else _to_checkpoints(gram, w) for w in weights),
        path_2d=_rows(path),
        averages_2d=tuple(None if place is None else (place[0], place[1]) for place in averages),
        explained=explained,
        step_cosines=_cosines(steps),
        sampled_fraction=geometry.sampled_fraction,
    )


def _rows(matrix: Float64) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _distances(gram: Float64) -> Float64:
    """Return ``||theta_i - theta_j||``, by the law of cosines."""
    squares = np.diag(gram)
    between = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))
    np.fill_diagonal(between, 0)
    return between


def _to_checkpoints(gram: Float64, weights: Float64) -> tuple[float, ...]:
    """Return the distance of an average from each checkpoint."""
    squares = np.diag(gram) - 2 * gram @ weights + weights @ gram @ weights
    return tuple(np.sqrt(np.maximum(squares, 0)).tolist())


def _plane(
    gram: Float64, weights: list[Float64 | None]
) -> tuple[Float64, list[list[float] | None], tuple[float, float]]:
    """Return checkpoints and averages in the plane of most variance, and the part of it that each axis explains.

    Principal components by way of the centred Gram matrix J G J; the first axis points from the first checkpoint to
    the last, the second to the checkpoint furthest along it.
    """
    centre = np.eye(len(gram)) - 1 / len(gram)
    centred = centre @ gram @ centre
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1][:_DIMENSIONS], vectors[:, ::-1][:, :_DIMENSIONS]
    values = np.where(values > _NOTHING * max(values[0], 0), values, 0)
    path = vectors * np.sqrt(values)
    whole = max(float(np.trace(centred)), 0.0)
    signs = np.array([_sign(path[-1, 0] - path[0, 0]), _sign(path[np.abs(path[:, 1]).argmax(), 1])])
    path *= signs
    averages = [None if w is None else (w @ path).tolist() for w in weights]
    parts = values / whole if whole > 0 else values
    return path, averages, (float(parts[0]), float(parts[1]))


def _sign(value: float) -> float:
    return -1.0 if value < 0 else 1.0


def _cosines(steps: Float64) -> tuple[float | None, ...]:
    """Return the cosine between each step and the next: -1 back, 0 across, 1 straight on."""
    found: list[float | None] = []
    for i in range(len(steps) - 1):
        lengths = float(np.sqrt(max(steps[i, i], 0) * max(steps[i + 1, i + 1], 0)))
        found.append(max(-1.0, min(1.0, float(steps[i, i + 1]) / lengths)) if lengths > 0 else None)
    return tuple(found)
