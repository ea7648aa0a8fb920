"""The shortest path through points whose distances are known: the order in which they were probably visited.

A travelling salesman's open path. Three starts (the order at hand, and the nearest neighbor from both ends of the
longest distance) are improved by reversing stretches and moving single points until nothing helps (Croes 1958, Or
1976). For a real run the start is the answer; a path that is not quite the shortest only hides a fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ema_cli.fold.conversion import Float64

_NEGLIGIBLE = 1e-9
"""Relative to the whole path: a smaller gain is rounding."""


def path_length(distances: Float64, order: Sequence[int]) -> float:
    """Return the length of the path through all points in an order."""
    return float(distances[order[:-1], order[1:]].sum())


def shortest_path(distances: Float64) -> list[int]:
    """Return a short path through all points of (n, n) distances, beginning with the lower of its two ends."""
    ends = np.unravel_index(int(distances.argmax()), distances.shape)
    starts = [list(range(len(distances))), *(_by_nearest(distances, int(end)) for end in ends)]
    found = min((_improved(distances, start) for start in starts), key=lambda order: path_length(distances, order))
    return found if found[0] < found[-1] else found[::-1]


def best_move(distances: Float64, order: Sequence[int]) -> list[int]:
    """Return the shortest path that moving a single point makes."""
    gains = _gains_of_moves(_with_ends(distances, order))
    place, after = np.unravel_index(int(gains.argmax()), gains.shape)
    return _moved(order, int(place), int(after))


def best_swap(distances: Float64, order: Sequence[int]) -> list[int]:
    """Return the shortest path that exchanging two points makes."""
    paths = [_swapped(order, i, j) for j in range(len(order)) for i in range(j)]
    return min(paths, key=lambda path: path_length(distances, path))


def _by_nearest(distances: Float64, start: int) -> list[int]:
    """Return the path that always goes to the nearest point that is left."""
    order = [start]
    left = distances.copy()
    for _ in range(len(distances) - 1):
        left[:, order[-1]] = np.inf
        order.append(int(left[order[-1]].argmin()))
    return order


def _improved(distances: Float64, order: list[int]) -> list[int]:
    least = _NEGLIGIBLE * path_length(distances, order)
    while True:
        ordered = _with_ends(distances, order)
        reversals, moves = _gains_of_reversals(ordered), _gains_of_moves(ordered)
        if max(reversals.max(), moves.max()) <= least:
            return order
        if reversals.max() >= moves.max():
            i, j = map(int, np.unravel_index(int(reversals.argmax()), reversals.shape))
            order = [*order[:i], *order[i : j + 1][::-1], *order[j + 1 :]]
        else:
            place, after = map(int, np.unravel_index(int(moves.argmax()), moves.shape))
            order = _moved(order, place, after)


def _with_ends(distances: Float64, order: Sequence[int]) -> Float64:
    """Return the distances in an order, between two ends that are at no distance from anything: (n + 2, n + 2)."""
    return np.pad(distances[np.ix_(order, order)], 1)


def _gains_of_reversals(ordered: Float64) -> Float64:
    """Return what reversing the stretch from i to j > i saves, (n, n)."""
    links = np.diag(ordered, 1)  # from each point, the first end included, to the next
    before = ordered[:-2, 1:-1]  # from the point before i to j
    after = ordered[1:-1, 2:]  # from i to the point after j
    gains = links[:-1, None] + links[None, 1:] - before - after
    return np.where(np.triu(np.ones_like(gains, dtype=bool), 1), gains, -np.inf)


def _gains_of_moves(ordered: Float64) -> Float64:
    """Return what moving point i between the points after - 1 and after saves, (n, n + 1)."""
    links = np.diag(ordered, 1)
    removed = links[:-1] + links[1:] - np.diag(ordered, 2)
    added = ordered[1:-1, :-1] + ordered[1:-1, 1:] - links[None, :]
    gains = removed[:, None] - added
    places = np.arange(len(gains))
    gains[places, places] = gains[places, places + 1] = -np.inf  # where it is
    return np.asarray(gains)


def _moved(order: Sequence[int], place: int, after: int) -> list[int]:
    rest = [*order[:place], *order[place + 1 :]]
    target = after if after <= place else after - 1
    return [*rest[:target], order[place], *rest[target:]]


def _swapped(order: Sequence[int], i: int, j: int) -> list[int]:
    path = list(order)
    path[i], path[j] = path[j], path[i]
    return path
