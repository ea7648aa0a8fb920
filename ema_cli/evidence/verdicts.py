"""The verdicts on the sampled checkpoints: unrelated, outlier, order, copies; each a warning with its numbers.

The limits are from real training runs (tests/README.md has the tables), between the values of these runs and those of
faults. A fault that stays below a limit is not reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ema_cli.errors import RunWarning
from ema_cli.evidence.path_order import PathOrder, misplaced
from ema_cli.fold.conversion import Float64
from ema_cli.planning.warnings import COPIES_HINT
from ema_cli.record import record
from ema_cli.storage.locations import Location, common_folder
from ema_cli.text import number, plural, shortlist

RELATED = 0.1
"""Cosine from which two checkpoints are of one run. Other runs: up to 0.08; real series: from 0.18."""
FAR = 2.5
"""Distance to the nearest, relative to the largest among the others. Real runs: up to 1.3, and up to 12 for the second
of a run that slows down, which lies between its neighbors."""
ASIDE = 2.0
"""The way from one neighbor over a checkpoint to the other, relative to the direct way, from which it does not lie
between them. Real runs: up to 1.6, where a checkpoint is far 1.5; checkpoints of another scale: from 3.1."""
LEAST_FOR_DISTANCE = 5
"""Checkpoints, below which no distance is extraordinary."""


def warn_of_unrelated(
    cosines: Float64, groups: Sequence[Sequence[int]], names: Sequence[str], locations: Sequence[Location]
) -> RunWarning:
    """Return the warning that the checkpoints fall into groups that have nothing in common."""
    largest = max(groups, key=len)
    between = max(float(cosines[i, j]) for n, a in enumerate(groups) for b in groups[:n] for i in a for j in b)
    numbers = f"their largest cosine is {between:z.2f}; checkpoints of one run have at least {RELATED:g}"
    hint = _hint_to_separate([[locations[i] for i in group] for group in groups])
    single = alone(groups)
    if single:
        others = plural(len(largest), "checkpoint")
        message = f"{shortlist(names[i] for i in single)}: nothing in common with the other {others}: {numbers}"
        return RunWarning(code="evidence-outlier", message=message, hint=f"untrained, or of another run? {hint}")
    if len(largest) == 1:
        message = f"the checkpoints have nothing in common: {numbers}"
        hint = f"parts of one checkpoint, or several models? {hint}"
        return RunWarning(code="evidence-unrelated", message=message, hint=hint)
    listed = "; ".join(shortlist((names[i] for i in group), most=2) for group in groups[:3])
    message = f"the checkpoints fall into {len(groups)} groups with nothing in common ({listed}): {numbers}"
    return RunWarning(code="evidence-unrelated", message=message, hint=f"several runs? {hint}")


def _hint_to_separate(groups: Sequence[Sequence[Location]]) -> str:
    """Return how to average one run; ``batch`` helps if each group is in a folder of its own."""
    folders = [f"{common_folder(group)}/" for group in groups]
    nested = any(one.startswith(other) for one in folders for other in folders if one is not other)
    return "average the checkpoints of one run" + ("" if nested else "; for several runs: ema-avg batch RUNS/")


def alone(groups: Sequence[Sequence[int]]) -> list[int]:
    """Return the checkpoints that belong to no group, if all others are one; else nothing."""
    single = [group[0] for group in groups if len(group) == 1]
    return single if len(groups) - len(single) == 1 else []


def related_groups(cosines: Float64) -> list[list[int]]:
    """Return the groups of checkpoints that are connected by cosines; an undefined cosine connects."""
    left = list(range(len(cosines)))
    groups = []
    while left:
        group, waiting = [], [left.pop(0)]
        while waiting:
            one = waiting.pop()
            group.append(one)
            near = [other for other in left if not cosines[one, other] < RELATED]
            left = [other for other in left if other not in near]
            waiting += near
        groups.append(sorted(group))
    return groups


@record
class Outlier:
    """A checkpoint that is much farther from all others than these are from each other."""

    row: int
    nearest: int
    ratio: float
    """The distance to the nearest, relative to the largest among the others."""


def find_outliers(distances: Float64, steps: Sequence[int] | None) -> list[Outlier]:
    """Return the checkpoints far from all others.

    The first may be far away: an initialization is. So may one after a long gap, if there are ``steps``, and one on the
    way between its neighbors, as the second of a run whose learning rate falls.
    """
    count = len(distances)
    found = []
    for i in range(1, count if count >= LEAST_FOR_DISTANCE else 1):
        others = [j for j in range(1, count) if j != i]
        nearest = min((j for j in range(count) if j != i), key=distances[i].__getitem__)
        largest = float(distances[np.ix_(others, others)].max())
        ratio = float(distances[i, nearest]) / largest if largest > 0 else 0.0
        if ratio >= FAR * _relative_gap(steps, i, nearest, others) and not _is_on_the_way(distances, i):
            found.append(Outlier(row=i, nearest=nearest, ratio=ratio))
    return found


def _is_on_the_way(distances: Float64, i: int) -> bool:
    """Whether a checkpoint lies between the one before and the one after it."""
    if not 0 < i < len(distances) - 1:
        return False
    return float(distances[i - 1, i] + distances[i, i + 1]) < ASIDE * float(distances[i - 1, i + 1])


def warn_of_outliers(found: Sequence[Outlier], names: Sequence[str]) -> Iterator[RunWarning]:
    """Yield a warning about each outlier."""
    for one in found:
        yield RunWarning(
            code="evidence-outlier",
            message=f"{names[one.row]} is far from all others: its distance to the nearest, {names[one.nearest]}, is "
            f"{number(one.ratio)} times the largest among the others",
            hint="of another run or scale, in the wrong place, or a training that diverged? name only the others",
        )


def _relative_gap(steps: Sequence[int] | None, i: int, nearest: int, others: Sequence[int]) -> float:
    """Return the steps to the nearest relative to those that the others span, at least 1."""
    if steps is None:
        return 1.0
    span = max(steps[j] for j in others) - min(steps[j] for j in others)
    return max(1.0, abs(steps[i] - steps[nearest]) / max(span, 1))


def warn_of_order(found: PathOrder, names: Sequence[str]) -> Iterator[RunWarning]:
    """Yield a warning if the path through the checkpoints is much longer than it could be."""
    if not found.doubtful:
        return
    numbers = f"the path through the checkpoints is {number(found.ratio)} times as long as the shortest"
    message = f"the order does not agree with the weights: {numbers}; {_difference(found, names)}"
    hint = "check the order in the plan; --steps, or --order given with the paths in order, changes it"
    yield RunWarning(code="evidence-order", message=message, hint=hint)


def _difference(found: PathOrder, names: Sequence[str]) -> str:
    """Return which checkpoint to move or which two to swap; else the shortest order."""
    repaired = found.repaired()
    if repaired is None:
        return f"that is {shortlist((names[i] for i in found.shortest), most=12)}, or the reverse"
    path, kind = repaired
    if kind == "swap":
        one, other = misplaced(range(len(names)), path)
        return f"{names[one]} and {names[other]} seem to be in each other's place"
    moved = next(i for i in path if [j for j in path if j != i] == [j for j in range(len(path)) if j != i])
    place = path.index(moved)
    neighbors = [names[path[k]] for k in (place - 1, place + 1) if 0 <= k < len(path)]
    end = "end" if place else "beginning"
    where = f"between {' and '.join(neighbors)}" if len(neighbors) > 1 else f"at the {end}, beside {neighbors[0]}"
    return f"{names[moved]} seems to belong {where}"


def warn_of_copies(groups: Sequence[Sequence[int]], names: Sequence[str]) -> Iterator[RunWarning]:
    """Yield a warning about checkpoints whose samples are bit-equal."""
    if not groups:
        return
    listed = shortlist(" = ".join(names[i] for i in group) for group in groups)
    message = f"{listed}: the sampled weights are bit-equal, so the average counts the same weights several times"
    yield RunWarning(code="evidence-copies", message=message, hint=COPIES_HINT)
