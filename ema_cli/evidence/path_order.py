"""Whether the order of the checkpoints agrees with their weights.

A training run is close to a random walk, in which the squares of the distances add up: the path through the
checkpoints in their true order is the shortest. Where the weights wander around a point, all orders are nearly
equally long, and nothing can be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ema_cli.evidence.shortest_path import best_move, best_swap, path_length, shortest_path
from ema_cli.fold.conversion import Float64

LEAST_FOR_ORDER = 5
"""Checkpoints, below which chance makes an order look shorter than another."""
LONGER = 1.2
"""An order is doubtful if its path is longer than the shortest by this factor. Real runs: up to 1.09."""
DECIDED = 1.8
"""The weights decide an order if a typical path is longer than the shortest by this factor. Around a point: 1.1."""
_FARTHEST = 4.0
"""Relative to the typical nearest neighbor: a longer distance counts as this much, so that one leap decides nothing."""
_AS_GOOD = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOrder:
    """The path through some points in the order at hand, compared with the shortest."""

    ratio: float
    """Its length, relative to the shortest."""
    typical: float
    """The mean length over all orders, relative to the shortest."""
    shortest: list[int]
    lengths: Float64
    """What each step between two points counts, (points, points)."""

    @property
    def decided(self) -> bool:
        """Whether the weights have one order that is much shorter than most."""
        return self.typical >= DECIDED

    @property
    def doubtful(self) -> bool:
        """Whether the order at hand is much longer than the shortest, and the weights decide the order."""
        return self.decided and self.ratio >= LONGER

    def repaired(self) -> tuple[list[int], str] | None:
        """Return a path that is almost the shortest after one change, and the kind of change; ``None`` without one."""
        order, length = list(range(len(self.lengths))), path_length(self.lengths, self.shortest)
        for kind, path in (("move", best_move(self.lengths, order)), ("swap", best_swap(self.lengths, order))):
            if path_length(self.lengths, path) <= _AS_GOOD * length:
                return path, kind
        return None


def compare_order(distances: Float64) -> PathOrder | None:
    """Return how good the order of points is, from their (points, points) distances.

    ``None`` for too few points, or if most have another at no distance.
    """
    count = len(distances)
    if count < LEAST_FOR_ORDER:
        return None
    nearest = float(np.median((distances + np.diag([np.inf] * count)).min(axis=1)))
    if nearest == 0:
        return None
    lengths = np.minimum(distances / nearest, _FARTHEST) ** 2
    shortest = shortest_path(lengths)
    length = path_length(lengths, shortest)
    typical = lengths[np.triu_indices(count, 1)].mean() * (count - 1)
    ratio = path_length(lengths, list(range(count))) / length
    return PathOrder(ratio=ratio, typical=float(typical) / length, shortest=shortest, lengths=lengths)


def misplaced(order: Sequence[int], path: Sequence[int]) -> list[int]:
    """Return the points that stand elsewhere in ``path``: for a swap the two."""
    return [point for point, other in zip(order, path, strict=True) if point != other]
