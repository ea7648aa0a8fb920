"""The order of a series by its steps, and what to warn about: no steps, steps of some only, witnesses that disagree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ema_cli.discovery.mixed_runs import find_mixed_runs
from ema_cli.discovery.order_warnings import (
    ORDER_HINT,
    count_steps,
    missing_steps,
    warn_of_disagreement,
    warn_of_doubtful_order,
    warn_of_incomplete_steps,
)
from ema_cli.discovery.patterns import whole_folder
from ema_cli.discovery.witnesses import Witness, choose, find_contradiction, names_below
from ema_cli.errors import InputRefused, Proposal, RunWarning, UsageError
from ema_cli.formats.file_names import is_weights
from ema_cli.name_numbers import canonical_name
from ema_cli.naming import natural_key
from ema_cli.options.average import Options
from ema_cli.record import record
from ema_cli.records.series import Checkpoint, FoundStep
from ema_cli.storage.locations import absolute, full_name, is_folder, literal, locate
from ema_cli.text import plural, quoted, regex, shortlist

_INITIAL = regex(r"(?:^|[/._-])(?:init(?:ial)?|pretrain(?:ed)?|base|start)(?:[/._-]|$)", re.IGNORECASE)
"""A checkpoint without a step that comes before the others; any other comes after them."""
_MOST_SHOWN = 5
_MOST_RUNS = 8
"""Runs that are planned before they are proposed."""


@record
class SeriesOrder:
    """The order of some checkpoints, with its reason."""

    positions: tuple[int, ...]
    """Of the checkpoints, oldest first."""
    reason: str
    steps: Sequence[FoundStep | None]
    """Of each checkpoint, as they were given: all from one source, or ``None`` for all."""
    warnings: tuple[RunWarning, ...] = ()


def steps_by_hand(checkpoints: Sequence[Checkpoint], options: Options) -> list[FoundStep | None]:
    """Return the steps of ``--steps``.

    Raises:
        UsageError: they have another number.

    """
    given = options.steps or ()
    if len(given) != len(checkpoints):
        counts = f"{plural(len(given), 'step')} for {plural(len(checkpoints), 'checkpoint')}"
        hint = "give one step per checkpoint, in the order of the arguments"
        raise UsageError(f"--steps gives {counts}", hint=hint)
    return [FoundStep(value=value, unit="step", source="--steps") for value in given]


def order_by_witnesses(
    checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness], options: Options
) -> SeriesOrder:
    """Return the order by the best witness; by name, with a warning, if none has a number for every checkpoint.

    Raises:
        UsageError: ``--order step``, but not every checkpoint has a step.
        InputRefused: two checkpoints have the same step, or they are numbered in different units.

    """
    chosen = choose(witnesses)
    if chosen is None:
        return _without_steps(checkpoints, witnesses, options)
    refuse_equal_steps(checkpoints, [value or 0 for value in chosen.values], chosen.unit, options)
    warnings = [
        warn_of_disagreement(checkpoints, chosen, other) for other in [find_contradiction(chosen, witnesses)] if other
    ]
    warnings.extend(find_mixed_runs(checkpoints, chosen))
    return SeriesOrder(
        positions=tuple(sorted(range(len(checkpoints)), key=lambda n: chosen.values[n] or 0)),
        reason=f"by {chosen.unit} ({chosen.source})",
        steps=chosen.steps,
        warnings=tuple(warnings) if options.order_matters else (),
    )


def refuse_equal_steps(
    checkpoints: Sequence[Checkpoint], values: Sequence[int | None], unit: str, options: Options
) -> None:
    """Refuse checkpoints with the same step: they are copies, or from two runs."""
    by_step: dict[int | None, list[str]] = defaultdict(list)
    for checkpoint, value in zip(checkpoints, values, strict=True):
        by_step[value].append(quoted(str(checkpoint.path)))
    is_position = unit in ("step", "epoch")
    twice = [
        f"{f'{value:,}: ' if is_position else ''}{', '.join(paths)}"
        for value, paths in sorted(by_step.items(), key=lambda entry: entry[0] or 0)
        if value is not None and len(paths) > 1
    ]
    if twice:
        raise InputRefused(
            f"checkpoints have the same {unit}: {_joined(twice)}",
            hint=f"two runs? ema-avg batch RUNS/; two copies? name one of them; otherwise {ORDER_HINT}",
            proposals=[*_each_run(checkpoints, options), *_folder(checkpoints)],
        )


def _each_run(checkpoints: Sequence[Checkpoint], options: Options) -> Iterator[Proposal]:
    """Yield the command that averages each of the folders by itself, if several with a series each were named."""
    runs = list(options.paths)
    if not all(is_folder(locate(path)) for path in runs):
        members = Counter(full_name(checkpoint.path.parent) for checkpoint in checkpoints)
        runs = [folder for folder, count in members.items() if count > 1]
        if sum(members[folder] for folder in runs) < len(checkpoints):
            return
    if 1 < len(runs) <= _MOST_RUNS:
        yield Proposal(reason="several runs? average each by itself", changes={}, runs=tuple(runs))


def _folder(checkpoints: Sequence[Checkpoint]) -> Iterator[Proposal]:
    """Yield the command with the folder, if all files in it were named: there ``last.ckpt`` is skipped as a copy."""
    folder = whole_folder([checkpoint.path for checkpoint in checkpoints], is_weights)
    if folder is not None:
        yield Proposal(reason="name the folder, of which copies are skipped", changes={"paths": (literal(folder),)})


def _joined(groups: Sequence[str]) -> str:
    """Return groups of names, which have commas inside."""
    more = [f"and {len(groups) - _MOST_SHOWN:,} more"] if len(groups) > _MOST_SHOWN else []
    return "; ".join([*groups[:_MOST_SHOWN], *more])


def _without_steps(checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness], options: Options) -> SeriesOrder:
    """Return the order of checkpoints of which not all have a step, with a warning that shows it."""
    names = names_below([absolute(checkpoint.path) for checkpoint in checkpoints])
    _refuse_equal_names(checkpoints, names)
    partial = max((one for one in witnesses if None in one.values), key=count_steps, default=None)
    if options.order_matters:
        _refuse_mixed_units(checkpoints, witnesses)
    if options.order == "step":
        _refuse_missing_steps(checkpoints, partial)
    if partial is not None:
        positions = sorted(range(len(names)), key=lambda n: _among_stepped(partial.values[n], names[n]))
        reason = f"by {partial.unit} ({partial.source}), those without one by name"
        warning = warn_of_incomplete_steps(checkpoints, partial, positions)
    else:
        positions = sorted(range(len(names)), key=lambda n: natural_key(str(checkpoints[n].path)))
        reason = "by name, in natural order"
        warning = warn_of_doubtful_order(checkpoints, witnesses, positions)
    warned = options.order_matters and len(checkpoints) > 1
    return SeriesOrder(
        positions=tuple(positions),
        reason=reason,
        steps=[None] * len(names),
        warnings=(warning,) if warned else (),
    )


def _among_stepped(value: int | None, name: str) -> tuple[object, ...]:
    """Return the sort key of a name: initial weights, then by step, then those without a step."""
    if value is not None:
        return 1, value
    return (0 if _INITIAL.search(name) else 2), natural_key(name)


def _refuse_equal_names(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> None:
    """Refuse checkpoints with names that mean the same step: ``step_005`` and ``step_5``."""
    same: dict[object, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        key = canonical_name(name)
        if any(isinstance(part, int) for part in key):
            same[key].append(position)
    twice = [", ".join(quoted(str(checkpoints[n].path)) for n in found) for found in same.values() if len(found) > 1]
    if twice:
        raise InputRefused(
            f"the names of checkpoints state the same step: {_joined(twice)}",
            hint=f"two copies? name one of them; otherwise {ORDER_HINT}",
        )


def _refuse_mixed_units(checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness]) -> None:
    """Refuse checkpoints of which some have only steps, and the others only epochs."""
    by_unit: dict[str, str] = {}
    for position, checkpoint in enumerate(checkpoints):
        known = [(one.unit, one.values[position]) for one in witnesses if one.values[position] is not None]
        units = {unit for unit, _ in known}
        if len(units) == 1 and units <= {"step", "epoch"}:
            unit, value = known[0]
            by_unit.setdefault(unit, f"{quoted(checkpoint.path.name)} has {unit} {value:,}")
    if len(by_unit) > 1:
        message = f"the checkpoints are numbered in different units: {shortlist(by_unit.values())}"
        raise InputRefused(message, hint=f"select those of one kind; or {ORDER_HINT}")


def _refuse_missing_steps(checkpoints: Sequence[Checkpoint], partial: Witness | None) -> None:
    if partial is None:
        message = "--order step, but the checkpoints have no steps, neither inside nor in their names"
        raise UsageError(message, hint=ORDER_HINT)
    raise UsageError(
        f"--order step, but {missing_steps(checkpoints, partial)}", hint=f"name only the others; or {ORDER_HINT}"
    )
