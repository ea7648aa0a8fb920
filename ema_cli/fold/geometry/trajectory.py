"""From inner products to a description of the run: distances, the path in a plane, how it turned.

Input -> output: the Gram matrix of N checkpoints and K averages, relative to the last checkpoint -> a record of plain
numbers.
"""

from __future__ import annotations

import numpy as np

from ema_cli.fold.conversion import Float64
from ema_cli.fold.geometry.sample import GeometrySample
from ema_cli.records.fold_results import RunGeometry

_DIMENSIONS = 2
_ROUNDING = 1e-9
"""If a sum of weights is further from one, the result is no average and has no position among the checkpoints."""
_NEGLIGIBLE = 1e-12
"""Relative to the largest eigenvalue: a smaller one is rounding."""


def describe_run(sample: GeometrySample, used: tuple[int, ...]) -> RunGeometry | None:
    """Return the geometry of a run, ``None`` if it is not finite.

    Args:
        sample: of all checkpoints, complete.
        used: the inputs that were read, in fold order.

    """
    with np.errstate(all="ignore"):  # checkpoints may hold NaN and infinity
        gram = sample.gram()
    if not np.isfinite(gram).all():
        return None
    count = len(sample.placed)
    own = gram[:count, :count]
    averaged = [abs(w.sum() - 1) < _ROUNDING for w in sample.weights]
    distances = _distances(gram)
    path, averages, explained = _plane(gram, count)
    steps = own[1:, 1:] - own[1:, :-1] - own[:-1, 1:] + own[:-1, :-1]  # <d_i, d_j> of d_i = theta_(i+1) - theta_i
    return RunGeometry(
        inputs=tuple(used[i] for i in sample.placed.tolist()),
        pairwise_distance=_rows(distances[:count, :count]),
        average_distance=tuple(
            tuple(row.tolist()) if is_average else None
            for row, is_average in zip(distances[count:, :count], averaged, strict=True)
        ),
        path_2d=_rows(path),
        averages_2d=tuple(
            (position[0], position[1]) if is_average else None
            for position, is_average in zip(averages.tolist(), averaged, strict=True)
        ),
        explained=explained,
        step_cosines=_cosines(steps),
        sampled_fraction=sample.fraction,
    )


def _rows(matrix: Float64) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _distances(gram: Float64) -> Float64:
    """Return ``||theta_i - theta_j||``, by the law of cosines."""
    squares = np.diag(gram)
    between = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))
    np.fill_diagonal(between, 0)
    return between


def _plane(gram: Float64, count: int) -> tuple[Float64, Float64, tuple[float, float]]:
    """Return checkpoints and averages in the plane of most variance, and the part of it that each axis explains.

    Principal components of the first ``count`` points, from their Gram matrix centred on their mean; the averages are
    projected. The first axis points from the first checkpoint to the last, the second to the checkpoint that is
    furthest along it.
    """
    means = gram[:, :count].mean(axis=1)
    centred = gram[:, :count] - means[:, None] - means[None, :count] + means[:count].mean()
    own = centred[:count]
    values, vectors = np.linalg.eigh((own + own.T) / 2)
    values, vectors = values[::-1][:_DIMENSIONS], vectors[:, ::-1][:, :_DIMENSIONS]
    present = values > _NEGLIGIBLE * max(values[0], 0)
    lengths = np.sqrt(np.where(present, values, 0))
    positions = np.where(present, centred @ vectors / np.where(present, lengths, 1), 0)
    path = positions[:count]
    signs = np.array([_sign(path[-1, 0] - path[0, 0]), _sign(path[np.abs(path[:, 1]).argmax(), 1])])
    whole = max(float(np.trace(own)), 0.0)
    parts = lengths**2 / whole if whole > 0 else lengths
    return path * signs, positions[count:] * signs, (float(parts[0]), float(parts[1]))


def _sign(value: float) -> float:
    return -1.0 if value < 0 else 1.0


def _cosines(steps: Float64) -> tuple[float | None, ...]:
    """Return the cosine between each step and the next: -1 back, 0 across, 1 straight on."""
    found: list[float | None] = []
    for i in range(len(steps) - 1):
        lengths = float(np.sqrt(max(steps[i, i], 0) * max(steps[i + 1, i + 1], 0)))
        found.append(max(-1.0, min(1.0, float(steps[i, i + 1]) / lengths)) if lengths > 0 else None)
    return tuple(found)
