"""Whether the order of the checkpoints agrees with their weights.

A training run is close to a random walk, in which the squares of the distances add up: the path through the
checkpoints in their true order is the shortest. Where the weights wander around a point, all orders are nearly
equally long, and nothing can be said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ema_cli.evidence.shortest_path import best_move, best_swap, path_length, shortest_path
from ema_cli.fold.conversion import Float64
from ema_cli.record import record
from ema_cli.records.series_evidence import LEAST_FOR_ORDER, LONGER
from ema_cli.weights.timeline import median

LONGER_WHOLE = 1.5
"""The same where long distances count in full. Real runs: up to 1.28, from an initialization; an end of the series that
stands at the other end: from 1.57."""
DECIDED = 1.8
"""The weights decide an order if a typical path is longer than the shortest by this factor. Around a point: 1.1."""
_FARTHEST = 4.0
"""Relative to the typical nearest neighbor: a longer distance counts as this much, so that one leap does not hide the
rest. Distances count in full, too: only then is it seen that the end of a series leaps back to its beginning."""
_AS_GOOD = 1.05


@record
class _Path:
    """The order at hand compared with the shortest path, by one measure of length."""

    lengths: Float64
    """What each step between two points counts, (points, points)."""
    shortest: list[int]
    limit: float
    """Ratio from which the order is doubtful."""

    @property
    def ratio(self) -> float:
        return self.relative(range(len(self.lengths)))

    @property
    def typical(self) -> float:
        count = len(self.lengths)
        mean = float(self.lengths[np.triu_indices(count, 1)].mean()) * (count - 1)
        return mean / path_length(self.lengths, self.shortest)

    @property
    def doubtful(self) -> bool:
        return self.typical >= DECIDED and self.ratio >= self.limit

    def relative(self, order: Sequence[int]) -> float:
        """Return the length of an order, relative to the shortest."""
        return path_length(self.lengths, order) / path_length(self.lengths, self.shortest)


@record
class PathOrder:
    """The path through some points in the order at hand, compared with the shortest."""

    capped: _Path
    whole: _Path

    @property
    def _decisive(self) -> _Path:
        return self.whole if self.whole.doubtful and self.whole.ratio > self.capped.ratio else self.capped

    @property
    def ratio(self) -> float:
        """Its length, relative to the shortest."""
        return self._decisive.ratio

    @property
    def typical(self) -> float:
        """The mean length over all orders, relative to the shortest."""
        return self._decisive.typical

    @property
    def shortest(self) -> list[int]:
        """The points in the shortest order."""
        return self.whole.shortest

    @property
    def decided(self) -> bool:
        """Whether the weights have one order that is much shorter than most."""
        return self.typical >= DECIDED

    @property
    def doubtful(self) -> bool:
        """Whether the order at hand is much longer than the shortest, and the weights decide the order."""
        return self._decisive.doubtful

    def repaired(self) -> tuple[list[int], str] | None:
        """Return a path that is almost the shortest after one change, and the kind of change; ``None`` without one."""
        order = list(range(len(self.whole.lengths)))
        changes = ((best_move(self.whole.lengths, order), "move"), (best_swap(self.whole.lengths, order), "swap"))
        path, kind = min(changes, key=lambda change: self.whole.relative(change[0]))
        is_as_good = max(self.whole.relative(path), self.capped.relative(path)) <= _AS_GOOD
        return (path, kind) if is_as_good else None


def compare_order(distances: Float64) -> PathOrder | None:
    """Return how good the order of points is, from their (points, points) distances.

    ``None`` for too few points, or if most have another at no distance.
    """
    count = len(distances)
    if count < LEAST_FOR_ORDER:
        return None
    nearest = median((distances + np.diag([np.inf] * count)).min(axis=1).tolist())
    if nearest == 0:
        return None
    relative = distances / nearest
    capped, whole = (np.minimum(relative, most) ** 2 for most in (_FARTHEST, np.inf))
    return PathOrder(
        capped=_Path(lengths=capped, shortest=shortest_path(capped), limit=LONGER),
        whole=_Path(lengths=whole, shortest=shortest_path(whole), limit=LONGER_WHOLE),
    )


def misplaced(order: Sequence[int], path: Sequence[int]) -> list[int]:
    """Return the points that stand elsewhere in ``path``: for a swap the two."""
    return [point for point, other in zip(order, path, strict=True) if point != other]
