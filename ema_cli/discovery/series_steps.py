"""The order of a series by its steps, and what to warn about: no steps, steps of some only, witnesses that disagree."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ema_cli.discovery.mixed_runs import find_mixed_runs
from ema_cli.discovery.witnesses import Witness, choose, constant_step, find_contradiction, names_below
from ema_cli.errors import InputRefused, RunWarning, UsageError
from ema_cli.naming import natural_key
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint, FoundStep
from ema_cli.step_names import canonical_name, inversion
from ema_cli.storage.locations import absolute
from ema_cli.text import plural, quoted, shortlist

ORDER_HINT = "name them oldest first, with --order given; or give their steps with --steps"
_BY_NAME_HINT = f"if that is right, confirm it with --order name; otherwise {ORDER_HINT}"
_INITIAL = re.compile(r"(?:^|[/._-])(?:init(?:ial)?|pretrain(?:ed)?|base|start)(?:[/._-]|$)", re.IGNORECASE)
"""A checkpoint without a step that comes before the others; any other comes after them."""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
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
    refuse_equal_steps(checkpoints, [value or 0 for value in chosen.values], chosen.unit)
    warnings = [_disagreement(checkpoints, chosen, other) for other in [find_contradiction(chosen, witnesses)] if other]
    warnings.extend(find_mixed_runs(checkpoints, chosen))
    return SeriesOrder(
        positions=tuple(sorted(range(len(checkpoints)), key=lambda n: chosen.values[n] or 0)),
        reason=f"by {chosen.unit} ({chosen.source})",
        steps=chosen.steps,
        warnings=tuple(warnings) if options.order_matters else (),
    )


def refuse_equal_steps(checkpoints: Sequence[Checkpoint], values: Sequence[int | None], unit: str) -> None:
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
            f"checkpoints have the same {unit}: {shortlist(twice)}",
            hint=f"two runs? ema-avg batch RUNS/; two copies? leave one out; otherwise {ORDER_HINT}",
        )


def _without_steps(checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness], options: Options) -> SeriesOrder:
    """Return the order of checkpoints of which not all have a step, with a warning that shows it."""
    names = names_below([absolute(checkpoint.path) for checkpoint in checkpoints])
    _refuse_equal_names(checkpoints, names)
    partial = max((one for one in witnesses if None in one.values), key=_count, default=None)
    if options.order_matters:
        _refuse_mixed_units(checkpoints, witnesses)
    if options.order == "step":
        _refuse_missing_steps(checkpoints, partial)
    if partial is not None:
        positions = sorted(range(len(names)), key=lambda n: _among_stepped(partial.values[n], names[n]))
        reason = f"by {partial.unit} ({partial.source}), those without one by name"
        warning = _incomplete(checkpoints, partial, positions)
    else:
        positions = sorted(range(len(names)), key=lambda n: natural_key(str(checkpoints[n].path)))
        reason = "by name, in natural order"
        warning = _doubtful(checkpoints, witnesses, positions)
    warned = options.order_matters and len(checkpoints) > 1
    return SeriesOrder(
        positions=tuple(positions),
        reason=reason,
        steps=[None] * len(names),
        warnings=(warning,) if warned else (),
    )


def _count(witness: Witness) -> int:
    return sum(value is not None for value in witness.values)


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
            f"the names of checkpoints state the same step: {shortlist(twice)}",
            hint=f"two copies? leave one out; otherwise {ORDER_HINT}",
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
    raise UsageError(f"--order step, but {_missing(checkpoints, partial)}", hint=f"leave those out; or {ORDER_HINT}")


def _missing(checkpoints: Sequence[Checkpoint], partial: Witness) -> str:
    names = _short_names(checkpoints)
    without = [name for name, value in zip(names, partial.values, strict=True) if value is None]
    unit = f"{'an' if partial.unit == 'epoch' else 'a'} {partial.unit}"
    have = f"{_count(partial)} of {len(checkpoints)} checkpoints have {unit} ({partial.source})"
    return f"{have}, but {shortlist(without)} {'has' if len(without) == 1 else 'have'} none"


def _shown(checkpoints: Sequence[Checkpoint], positions: Sequence[int]) -> str:
    """Return the names in order, of many the first and the last ones."""
    names = _short_names(checkpoints)
    shown = [names[n] for n in positions]
    if len(shown) > _MOST_SHOWN:
        shown[_MOST_SHOWN - 2 : -2] = [f"{len(shown) - _MOST_SHOWN:,} more"]
    return ", ".join(shown)


def _short_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the names of the checkpoints below their common folder, for messages."""
    return [quoted(name) for name in names_below([absolute(checkpoint.path) for checkpoint in checkpoints])]


def _incomplete(checkpoints: Sequence[Checkpoint], partial: Witness, positions: Sequence[int]) -> RunWarning:
    message = f"{_missing(checkpoints, partial)}: the order in use, which may be wrong, is "
    message += _shown(checkpoints, positions)
    hint = f"leave out the checkpoints without a step; or {ORDER_HINT}"
    return RunWarning(code="steps-incomplete", message=message, hint=hint)


def _doubtful(checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness], positions: Sequence[int]) -> RunWarning:
    """Return the warning that the order rests on the alphabet alone."""
    same = constant_step(witnesses)
    why = f"all have the same {same.unit} {same.values[0]:,} ({same.source})" if same else "no steps were found"
    message = f"the order is that of the names, as {why}: "
    message += _shown(checkpoints, positions)
    times = [checkpoint.index.version for checkpoint in checkpoints if isinstance(checkpoint.path, Path)]
    known = len(set(times)) == len(checkpoints)
    if known and inversion([positions.index(n) for n in range(len(times))], times):
        message += "; they were written in another order"
    return RunWarning(code="order-doubtful", message=message, hint=_BY_NAME_HINT)


def _disagreement(checkpoints: Sequence[Checkpoint], chosen: Witness, other: Witness) -> RunWarning:
    """Return the warning that two witnesses order the checkpoints differently, with an example."""
    earlier, later = inversion(chosen.values, other.values) or (0, 0)
    names = _short_names(checkpoints)
    message = f"the order follows the {_named(chosen)}, but the {_named(other)} contradicts it: {names[earlier]} is "
    message += f"before {names[later]}{_pair(chosen, earlier, later)}, after it{_pair(other, earlier, later)}"
    hint = f"check which one is right; to follow another order, {ORDER_HINT}"
    return RunWarning(code="order-disagrees", message=message, hint=hint)


def _named(witness: Witness) -> str:
    return f"{witness.unit} ({witness.source})"


def _pair(witness: Witness, *positions: int) -> str:
    """Return the numbers of two checkpoints, if they are for people to read."""
    is_position = witness.unit in ("step", "epoch")
    return f" by {' and '.join(f'{witness.values[n]:,}' for n in positions)}" if is_position else ""
