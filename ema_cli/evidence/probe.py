"""Are the checkpoints one series, and in order? Asked once, after planning and before the fold.

Input -> output: a plan -> its ``Evidence`` and the warnings that follow. Reads at most 128 KiB per checkpoint; of those
with equal samples also the beginning of every tensor, unless there are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ema_cli.discovery.changes import blaming_changed_inputs
from ema_cli.errors import RunWarning
from ema_cli.evidence.path_order import PathOrder, compare_order
from ema_cli.evidence.pieces import choose_pieces, first_pieces
from ema_cli.evidence.sampled_relations import SampledRelations, groups_of
from ema_cli.evidence.verdicts import find_outliers, warn_of_copies, warn_of_order, warn_of_outliers, warn_of_unrelated
from ema_cli.naming import distinct_names
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan
from ema_cli.records.series import Role
from ema_cli.records.series_evidence import Evidence
from ema_cli.storage.locations import absolute
from ema_cli.text import quoted

LEAST_ELEMENTS = 2048
"""Sampled elements, below which a model is too small for a verdict."""
_MOST_CHECKPOINTS = 128
_MOST_TENSORS = 1024
"""Tensors whose beginnings are compared before two checkpoints are called copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What was found out about a series."""

    evidence: Evidence | None
    """``None`` if there is nothing to compare: fewer than two checkpoints, or too few numbers."""
    warnings: tuple[RunWarning, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
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
    relations, in_order, order = sampled.relations, sampled.unique, None
    names = [quoted(name) for name in _names(plan, sampled.rows)]
    warnings = list(warn_of_unrelated(relations.cosines, names)) if relations.elements >= LEAST_ELEMENTS else []
    if relations.elements >= LEAST_ELEMENTS and not warnings:
        steps = _steps(plan, sampled.positions(in_order))
        outliers = find_outliers(relations.distances[np.ix_(in_order, in_order)], steps)
        warnings += warn_of_outliers(outliers, [names[row] for row in in_order])
        in_order = [row for k, row in enumerate(in_order) if k not in {one.row for one in outliers}]
        order = compare_order(relations.distances[np.ix_(in_order, in_order)])
        if order is not None and options.order_matters:
            warnings += warn_of_order(order, [names[row] for row in in_order])
    warnings += warn_of_copies(sampled.copies, names)
    shortest = [] if order is None else [in_order[k] for k in order.shortest]
    evidence = _evidence(sampled, order, shortest, tuple(warning.code for warning in warnings))
    return Examined(evidence=evidence, warnings=tuple(warnings))


def _names(plan: Plan, rows: Sequence[int]) -> list[str]:
    """Return the names of checkpoints: those of their files, if they differ."""
    paths = [plan.checkpoints[i].path for i in rows]
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else distinct_names([absolute(path) for path in paths])


def _steps(plan: Plan, positions: Sequence[int]) -> list[int] | None:
    """Return the steps of checkpoints; ``None`` if some have none."""
    steps = [member.step.value for member in (plan.series.members[i] for i in positions) if member.step]
    return steps if len(steps) == len(positions) else None


def _evidence(sampled: _Sampled, order: PathOrder | None, shortest: Sequence[int], codes: tuple[str, ...]) -> Evidence:
    fresh, relations = sampled.fresh, sampled.relations
    cosines = relations.cosines[np.ix_(fresh, fresh)]
    np.fill_diagonal(cosines, np.nan)
    return Evidence(
        inputs=sampled.positions(fresh),
        elements=relations.elements,
        distances=tuple(map(tuple, relations.distances[np.ix_(fresh, fresh)].tolist())),
        nearest_cosines=tuple(float(row[~np.isnan(row)].max()) if not np.isnan(row).all() else None for row in cosines),
        path_ratio=None if order is None else order.ratio,
        typical_ratio=None if order is None else order.typical,
        order_decided=order is not None and order.decided,
        shortest_order=sampled.positions(shortest),
        copies=tuple(map(sampled.positions, sampled.copies)),
        verdicts=codes,
    )
