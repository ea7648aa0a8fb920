"""Are the checkpoints one series, and in order? Asked once, after planning and before the fold.

Input -> output: a plan -> its ``Evidence`` and the warnings that follow. Reads at most 128 KiB per checkpoint; of those
with equal samples also the beginning of every tensor, unless there are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ema_cli.discovery.changes import blaming_changed_inputs
from ema_cli.errors import RunWarning
from ema_cli.evidence.path_order import PathOrder, compare_order
from ema_cli.evidence.pieces import choose_pieces, first_pieces
from ema_cli.evidence.sampled_relations import SampledRelations, groups_of
from ema_cli.evidence.verdicts import (
    Outlier,
    alone,
    find_outliers,
    related_groups,
    warn_of_copies,
    warn_of_order,
    warn_of_outliers,
    warn_of_unrelated,
)
from ema_cli.fold.conversion import Float64
from ema_cli.options.average import Options
from ema_cli.record import record
from ema_cli.records.plan import Plan
from ema_cli.records.series import Role
from ema_cli.records.series_evidence import APART, LEAST_ELEMENTS, Evidence
from ema_cli.storage.locations import common_folder, labels
from ema_cli.text import quoted

_MOST_CHECKPOINTS = 128
_MOST_TENSORS = 1024
"""Tensors whose beginnings are compared before two checkpoints are called copies."""


@record
class Examined:
    """What was found out about a series."""

    evidence: Evidence | None
    """``None`` if there is nothing to compare: fewer than two checkpoints, or too few numbers."""
    warnings: tuple[RunWarning, ...]

    @property
    def are_related(self) -> bool:
        """Whether nothing says that the checkpoints are of several runs."""
        return not any(warning.code in APART for warning in self.warnings)


@record
class _Sampled:
    """The checkpoints that were sampled; the others are numbered by their row among them."""

    rows: Sequence[int]
    """Their positions in the plan."""
    fresh: Sequence[int]
    """The rows that are no previous average."""
    copies: Sequence[Sequence[int]]
    """Groups of rows with equal samples."""
    relations: SampledRelations

    def positions(self, rows: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.rows[row] for row in rows)

    def between(self, rows: Sequence[int]) -> Float64:
        """Return the distances of rows, (rows, rows)."""
        return self.relations.distances[np.ix_(rows, rows)]

    @property
    def unique(self) -> list[int]:
        """The fresh rows, of equal ones the first."""
        return [row for row in self.fresh if not any(row in group[1:] for group in self.copies)]


def examine_series(plan: Plan, options: Options) -> Examined:
    """Read a small sample of every checkpoint in use, and judge it.

    Raises:
        InputChanged: a checkpoint ends early, or cannot be read.

    """
    rows = _rows(plan)
    fresh = [row for row, i in enumerate(rows) if plan.series.members[i].role is not Role.AVERAGE]
    pieces = choose_pieces(plan, rows) if len(rows) > 1 and fresh else []
    if sum(piece.count for piece in pieces) < LEAST_ELEMENTS:
        return Examined(evidence=None, warnings=())
    with blaming_changed_inputs(plan.checkpoints):
        relations = SampledRelations(plan, rows, pieces)
        copies = _copies(plan, rows, fresh, relations)
    return _judge(plan, options, _Sampled(rows=rows, fresh=fresh, copies=copies, relations=relations))


def _rows(plan: Plan) -> list[int]:
    """Return the positions of the checkpoints to compare: those in use; of many, evenly chosen ones."""
    if len(plan.used) <= _MOST_CHECKPOINTS:
        return list(plan.used)
    chosen = np.linspace(0, len(plan.used) - 1, _MOST_CHECKPOINTS).round().astype(int)
    return [plan.used[k] for k in chosen.tolist()]


def _copies(plan: Plan, rows: Sequence[int], fresh: Sequence[int], relations: SampledRelations) -> list[list[int]]:
    """Return the groups of rows with equal samples, after a look at the beginning of every tensor."""
    found: list[list[int]] = []
    for alike in groups_of(relations.checksums[row] for row in fresh):
        group = [fresh[k] for k in alike]
        members = [rows[row] for row in group]
        pieces = first_pieces(plan, members, _MOST_TENSORS)
        confirmed = groups_of(SampledRelations(plan, members, pieces).checksums) if pieces else []
        found += [[group[k] for k in same] for same in confirmed]
    return found


def _judge(plan: Plan, options: Options, sampled: _Sampled) -> Examined:
    names, copies = _names(plan, sampled.rows), sampled.copies
    if sampled.relations.elements < LEAST_ELEMENTS:
        return _examined(sampled, list(warn_of_copies(copies, names)))
    groups = related_groups(sampled.relations.cosines)
    if len(groups) > 1:
        locations = [plan.checkpoints[i].path for i in sampled.rows]
        unrelated = warn_of_unrelated(sampled.relations.cosines, groups, names, locations)
        return _examined(sampled, [unrelated, *warn_of_copies(copies, names)], outliers=alone(groups))
    far = _far(plan, sampled)
    outliers = [one.row for one in far]
    order, rows = _order(sampled, [row for row in sampled.unique if row not in outliers])
    warnings = list(warn_of_outliers(far, names))
    if order is not None and options.order_matters:
        warnings += warn_of_order(order, [names[row] for row in rows])
    shortest = [] if order is None else [rows[k] for k in order.shortest]
    return _examined(sampled, [*warnings, *warn_of_copies(copies, names)], outliers, order, shortest)


def _far(plan: Plan, sampled: _Sampled) -> list[Outlier]:
    """Return the checkpoints that are far from all others, by their rows."""
    rows = sampled.unique
    found = find_outliers(sampled.between(rows), _steps(plan, sampled.positions(rows)))
    return [replace(one, row=rows[one.row], nearest=rows[one.nearest]) for one in found]


def _order(sampled: _Sampled, rows: Sequence[int]) -> tuple[PathOrder | None, Sequence[int]]:
    """Return the order of ``rows`` compared with the shortest, and the rows that were compared.

    A copy may stand where its original belongs or elsewhere: if the order is doubtful only with it, it is not compared.
    """
    order = compare_order(sampled.between(rows))
    if order is None or not order.doubtful or not sampled.copies:
        return order, rows
    others = [row for row in rows if not any(row in group for group in sampled.copies)]
    rest = compare_order(sampled.between(others))
    return (order, rows) if rest is not None and rest.doubtful else (rest, others)


def _names(plan: Plan, rows: Sequence[int]) -> list[str]:
    """Return the names of checkpoints as the table of the plan has them, quoted."""
    paths = [checkpoint.path for checkpoint in plan.checkpoints]
    names = labels(paths, common_folder(paths))
    return [quoted(names[i]) for i in rows]


def _steps(plan: Plan, positions: Sequence[int]) -> list[int] | None:
    """Return the steps of checkpoints; ``None`` if some have none."""
    steps = [member.step.value for member in (plan.series.members[i] for i in positions) if member.step]
    return steps if len(steps) == len(positions) else None


def _examined(
    sampled: _Sampled,
    warnings: Sequence[RunWarning],
    outliers: Sequence[int] = (),
    order: PathOrder | None = None,
    shortest: Sequence[int] = (),
) -> Examined:
    fresh, relations = sampled.fresh, sampled.relations
    cosines = relations.cosines[np.ix_(fresh, fresh)]
    np.fill_diagonal(cosines, np.nan)
    evidence = Evidence(
        inputs=sampled.positions(fresh),
        elements=relations.elements,
        distances=tuple(map(tuple, sampled.between(fresh).tolist())),
        nearest_cosines=tuple(float(row[~np.isnan(row)].max()) if not np.isnan(row).all() else None for row in cosines),
        path_ratio=None if order is None else order.ratio,
        typical_ratio=None if order is None else order.typical,
        order_decided=order is not None and order.decided,
        shortest_order=sampled.positions(shortest),
        copies=tuple(map(sampled.positions, sampled.copies)),
        verdicts=tuple(warning.code for warning in warnings),
        outliers=sampled.positions(outliers),
    )
    return Examined(evidence=evidence, warnings=tuple(warnings))
