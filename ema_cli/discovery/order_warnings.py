"""Warnings about the order of a series: no steps, steps of some only, witnesses that disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.discovery.witnesses import Witness, constant_step, names_below
from ema_cli.errors import RunWarning
from ema_cli.records.series import Checkpoint
from ema_cli.step_names import inversion
from ema_cli.storage.locations import absolute
from ema_cli.text import quoted, shortlist

ORDER_HINT = "name them oldest first, with --order given; or give their steps with --steps"
_BY_NAME_HINT = f"if that is right, confirm it with --order name; otherwise {ORDER_HINT}"
_MOST_SHOWN = 5
_MOST_STEPS = 16
"""Steps that a hint has."""


def warn_of_incomplete_steps(
    checkpoints: Sequence[Checkpoint], partial: Witness, positions: Sequence[int]
) -> RunWarning:
    """Return the warning that only some checkpoints have a step, with the order in use."""
    message = f"{missing_steps(checkpoints, partial)}: the order in use, which may be wrong, is "
    message += _shown(checkpoints, positions)
    hint = f"name only the checkpoints with a step; or {ORDER_HINT}"
    return RunWarning(code="steps-incomplete", message=message, hint=hint)


def warn_of_doubtful_order(
    checkpoints: Sequence[Checkpoint], witnesses: Sequence[Witness], positions: Sequence[int]
) -> RunWarning:
    """Return the warning that the order rests on the alphabet alone."""
    same = constant_step(witnesses)
    why = f"all have the same {same.unit} {same.values[0]:,} ({same.source})" if same else "no steps were found"
    message = f"the order is that of the names, as {why}: "
    message += _shown(checkpoints, positions)
    times = [checkpoint.index.version for checkpoint in checkpoints if isinstance(checkpoint.path, Path)]
    known = len(set(times)) == len(checkpoints)
    hint = _BY_NAME_HINT
    if known and inversion([positions.index(n) for n in range(len(times))], times):
        by_time = _shown(checkpoints, sorted(range(len(times)), key=times.__getitem__))
        message += f"; they were written in another order: {by_time}"
        hint = f"if that of the names is right: --order name; if that of the times is: --order mtime; or {ORDER_HINT}"
    return RunWarning(code="order-doubtful", message=message, hint=hint)


def warn_of_disagreement(checkpoints: Sequence[Checkpoint], chosen: Witness, other: Witness) -> RunWarning:
    """Return the warning that two witnesses order the checkpoints differently, with an example."""
    pair = inversion(chosen.values, other.values) or (0, 0)
    names = _short_names(checkpoints)
    message = f"the order follows the {_named(chosen)}, but the {_named(other)} contradicts it: "
    message += f"{_has(chosen, *pair, names)}; {_but_has(other, *pair)}"
    hint = f"check which one is right; to follow another order, {ORDER_HINT}"
    if _is_position(other) and other.distinct and len(checkpoints) <= _MOST_STEPS:
        them = f"{other.unit}s inside" if other.inside else "names"
        hint = f"if the {them} are right: --steps {','.join(map(str, other.values))}"
    return RunWarning(code="order-disagrees", message=message, hint=hint)


def _has(witness: Witness, earlier: int, later: int, names: Sequence[str]) -> str:
    """Return what a witness says about two checkpoints: their numbers, if these are for people to read."""
    if not _is_position(witness):
        return f"by {witness.unit}, {names[earlier]} is before {names[later]}"
    begin = "inside" if witness.inside else "by name"
    first, second = (f"{witness.unit} {witness.values[n]:,}" for n in (earlier, later))
    return f"{begin}, {names[earlier]} has {first} and {names[later]} {second}"


def _but_has(witness: Witness, earlier: int, later: int) -> str:
    """Return what another witness says about the same two checkpoints."""
    if not _is_position(witness):
        return f"by {witness.unit}, it is after it"
    numbers = f"{witness.values[earlier]:,} and {witness.values[later]:,}"
    return f"inside, their {witness.unit}s are {numbers}" if witness.inside else f"their names say {numbers}"


def _named(witness: Witness) -> str:
    return f"{witness.unit} ({witness.source})"


def _is_position(witness: Witness) -> bool:
    """Whether the numbers of a witness are for people to read."""
    return witness.unit in ("step", "epoch")


def missing_steps(checkpoints: Sequence[Checkpoint], partial: Witness) -> str:
    """Return how many checkpoints have a step, and which have none, in words."""
    names = _short_names(checkpoints)
    without = [name for name, value in zip(names, partial.values, strict=True) if value is None]
    unit = f"{'an' if partial.unit == 'epoch' else 'a'} {partial.unit}"
    have = f"{count_steps(partial)} of {len(checkpoints):,} checkpoints have {unit} ({partial.source})"
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


def count_steps(witness: Witness) -> int:
    """Return how many checkpoints have a number."""
    return sum(value is not None for value in witness.values)
