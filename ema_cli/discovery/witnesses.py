"""The witnesses of the order of a series: numbers stored inside the checkpoints, and numbers in their names.

The order follows one of them, whose numbers are all different. If another contradicts it, there is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from ema_cli.formats.state_dict.step_keys import INSIDE, may_restart
from ema_cli.naming import name_depth, name_of
from ema_cli.record import record
from ema_cli.records.series import Checkpoint, Folded, FoundStep
from ema_cli.step_names import inversion, name_columns, steps_from_names
from ema_cli.storage.locations import absolute

_RANKS = (("step", True), ("step", False), ("epoch", True), ("epoch", False))
"""Units and places, inside or in the name, from the best: a step is finer than an epoch, and names may be changed."""
_EPOCH_FACTOR = 1 << 62


@record
class Witness:
    """One number for each checkpoint of a series, from one source."""

    unit: str
    """``step``, ``epoch``, ``time`` or ``epoch and step``; only the first two are positions in training."""
    source: str
    """``inside: global_step``, or ``name``."""
    values: tuple[int | None, ...]
    restarts: bool = False
    """It may begin again in every epoch."""
    word: str = "key"
    """What says that it is a step: ``key`` inside; in names ``step``, ``checkpoint`` and the like, or nothing, or
    ``mixed`` words."""
    proven: bool = False
    """It gives the steps that a previous average lists."""

    @property
    def inside(self) -> bool:
        """Whether the numbers are stored in the checkpoints."""
        return self.source != "name"

    @property
    def varies(self) -> bool:
        """Whether there are two different numbers, or a single checkpoint."""
        return len({value for value in self.values if value is not None}) >= min(len(self.values), 2)

    @property
    def complete(self) -> bool:
        """Whether every checkpoint has a number, and they are not all the same."""
        return None not in self.values and self.varies

    @property
    def distinct(self) -> bool:
        """Whether all numbers differ."""
        return self.complete and len(set(self.values)) == len(self.values)

    @property
    def steps(self) -> list[FoundStep | None]:
        """The numbers as positions in training; nothing if they only give an order."""
        is_position = self.unit in ("step", "epoch")
        return [
            FoundStep(value=value, unit=self.unit, source=self.source) if value is not None and is_position else None
            for value in self.values
        ]

    def contradicts(self, other: Witness) -> bool:
        """Whether two checkpoints are in another order."""
        return inversion(self.values, other.values) is not None


def find_witnesses(checkpoints: Sequence[Checkpoint], folded: Sequence[Folded] = ()) -> list[Witness]:
    """Return all witnesses, best first. The names of those ``folded`` in a previous average help to read names."""
    found = [*_inside(checkpoints), *_in_names(checkpoints, folded)]
    found.sort(key=_rank)
    return [*found, *_of_epoch_and_step(found)]


def _rank(witness: Witness) -> int:
    rank = (witness.unit, witness.inside)
    return -1 if witness.proven else _RANKS.index(rank) if rank in _RANKS else len(_RANKS)


def choose(witnesses: Sequence[Witness]) -> Witness | None:
    """Return the witness to follow: the best whose numbers all differ, else the best that has numbers for all.

    Steps that begin again in every epoch, and thus contradict the epochs, are not followed. If others are the same in
    two checkpoints, these are copies or of two runs, whatever their names.
    """
    usable = [one for one in witnesses if one.complete and not (one.restarts and _begins_again(one, witnesses))]
    if constant_step(witnesses) is not None:
        usable = [one for one in usable if one.word]
    usable = [one for one in usable if one.word not in ("", "checkpoint", "mixed") or not _counts_epochs(one, usable)]
    is_final = (one for one in usable if one.distinct or (one.unit == "step" and one.inside and not one.restarts))
    return next(is_final, next(iter(usable), None))


def find_contradiction(chosen: Witness, witnesses: Sequence[Witness]) -> Witness | None:
    """Return the best witness that contradicts the chosen one, except steps that begin again in every epoch."""
    others = (one for one in witnesses if one.varies and one.word != "mixed" and chosen.contradicts(one))
    return next((one for one in others if not (one.restarts and _is_explained(one, chosen, witnesses))), None)


def _begins_again(steps: Witness, witnesses: Sequence[Witness]) -> bool:
    """Whether steps contradict the epochs, and the names do not show that it is the epochs that began again."""
    epochs = [one for one in witnesses if one.unit == "epoch" and one.complete and one.contradicts(steps)]
    names = [one for one in witnesses if not (one.inside or one.restarts or one.contradicts(steps)) and one.complete]
    return any(not any(name.contradicts(epoch) for name in names) for epoch in epochs)


def _is_explained(steps: Witness, chosen: Witness, witnesses: Sequence[Witness]) -> bool:
    """Whether steps that contradict the order begin again in every epoch: epochs and names agree with the order."""
    agreeing = [one for one in witnesses if one.varies and not one.contradicts(chosen)]
    has_epochs = any(one.unit == "epoch" and one.inside == steps.inside for one in agreeing)
    return has_epochs and any(not one.inside for one in agreeing)


def constant_step(witnesses: Sequence[Witness]) -> Witness | None:
    """Return a step inside that is the same in all checkpoints, though it should not be: they may be parts of one.

    The same epoch inside is usual, but not where the names may count epochs: ``m-1`` to ``m-4``, all after epoch 10.
    """
    if any(one.unit == "epoch" and one.inside and one.varies for one in witnesses):
        return None
    constant = [one for one in witnesses if one.inside and None not in one.values and not one.varies and one.values[0]]
    step = next((one for one in constant if one.unit == "step"), None)
    epochs = (one for one in constant if one.unit == "epoch" and (one.values[0] or 0) > 1)
    return step or (next(epochs, None) if _number_only_names(witnesses) else None)


def _number_only_names(witnesses: Sequence[Witness]) -> bool:
    """Whether nothing but names counts, and without a word, from 0 or 1 on: seeds and parts, or epochs."""
    names = [one for one in witnesses if one.varies]
    values = sorted(value or 0 for one in names for value in one.values)
    return [(one.inside, one.word) for one in names] == [(False, "")] and values in (
        [*range(len(values))],
        [*range(1, len(values) + 1)],
    )


def _counts_epochs(bare: Witness, witnesses: Sequence[Witness]) -> bool:
    """Whether a number in the names is the epoch that is stored inside, counted from 0 or 1."""
    epochs = (one for one in witnesses if one.unit == "epoch" and one.inside)
    differences = ({(a or 0) - (b or 0) for a, b in zip(bare.values, one.values, strict=True)} for one in epochs)
    return any(len(found) == 1 for found in differences)


def _inside(checkpoints: Sequence[Checkpoint]) -> Iterator[Witness]:
    """Yield a witness for each key with steps, in the order of the keys, and for each unit the best of each file.

    The latter only if no key is in all of them, as keys may count differently.
    """
    found = [{step.source: step for step in checkpoint.steps} for checkpoint in checkpoints]
    keys = {step.source: step for checkpoint in checkpoints for step in checkpoint.steps}
    common = set[str]()
    for key, step in keys.items():
        steps = [one.get(key) for one in found]
        common |= {step.unit} if None not in steps else set()
        yield _witness(steps, step.unit, key, restarts=may_restart(step))
    for unit in (unit for unit in ("step", "epoch") if unit not in common):
        best = [next((step for step in one.steps if step.unit == unit), None) for one in checkpoints]
        sources = {step.source.removeprefix(INSIDE) for step in best if step}
        if len(sources) > 1:
            yield _witness(best, unit, INSIDE + " or ".join(sorted(sources)))


def _witness(steps: Sequence[FoundStep | None], unit: str, source: str, *, restarts: bool = False) -> Witness:
    values = tuple(step.value if step else None for step in steps)
    return Witness(unit=unit, source=source, values=values, restarts=restarts)


def _in_names(checkpoints: Sequence[Checkpoint], folded: Sequence[Folded]) -> Iterator[Witness]:
    """Yield the witnesses in the paths below the common folder (``checkpoint-500/model.pt``), else in the file names.

    If there are checkpoints ``folded`` into a previous average of the same run, their names help to read the new names.
    """
    paths = [absolute(checkpoint.path) for checkpoint in checkpoints]
    if folded:
        yield from _like_those_inside(paths, folded)
        return
    columns = name_columns(names_below(paths))
    if not any(None not in column.values for column in columns):
        last = name_columns([path.rpartition("/")[2] for path in paths])
        columns = last if any(None not in column.values for column in last) else columns
    for column in columns:
        restarts = column.unit == "step" and any(other.unit == "epoch" for other in columns)
        yield Witness(unit=column.unit, source="name", values=column.values, restarts=restarts, word=column.word)


def names_below(paths: Sequence[str]) -> list[str]:
    """Return the parts of absolute paths below their common folder; of a single path, its last part."""
    split = [path.split("/") for path in paths]
    folders = zip(*(parts[:-1] for parts in split), strict=False)
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, folders))
    return ["/".join(parts[common:]) for parts in split]


def _like_those_inside(paths: Sequence[str], folded: Sequence[Folded]) -> Iterator[Witness]:
    """Read the names together with those in a previous average, if these give the steps that they had."""
    known = [one.name for one in folded]
    names = [name_of(path, name_depth(known)) for path in paths]
    series = list(dict.fromkeys([*known, *names]))
    steps = dict(zip(series, steps_from_names(series), strict=True))
    if any(found is None or found.value != one.step for one in folded for found in [steps[one.name]]):
        return
    for unit in ("step", "epoch"):
        values = tuple(found.value if (found := steps[name]) and found.unit == unit else None for name in names)
        if any(value is not None for value in values):
            yield Witness(unit=unit, source="name", values=values, word=unit, proven=True)


def _of_epoch_and_step(witnesses: Sequence[Witness]) -> Iterator[Witness]:
    """Yield the order by epoch, then by step, for steps that begin again in every epoch."""
    for epoch in (one for one in witnesses if one.unit == "epoch" and one.complete and not one.distinct):
        for step in (one for one in witnesses if one.restarts and one.complete and one.inside == epoch.inside):
            values = tuple((a or 0) * _EPOCH_FACTOR + (b or 0) for a, b in zip(epoch.values, step.values, strict=True))
            source = f"{epoch.source}, {step.source.removeprefix(INSIDE)}" if epoch.inside else "name"
            yield Witness(unit="epoch and step", source=source, values=values)
