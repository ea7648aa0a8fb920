"""The steps of a series, all from one source: ``--steps``, inside every file, every name, or none; never mixed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from ema_cli.errors import InputRefused, RunWarning, UsageError
from ema_cli.naming import NamedStep, name_depth, name_of, steps_from_names
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint, Folded, FoundStep
from ema_cli.storage.locations import absolute
from ema_cli.text import plural, quoted, shortlist

ORDER_HINT = "set the order with --order name or --order given, or the steps with --steps"


def steps_of(
    checkpoints: Sequence[Checkpoint], named: Sequence[FoundStep | None], options: Options
) -> Sequence[FoundStep | None]:
    """Return the step of each checkpoint, all from one source, or ``None`` for all; ``named`` are those in the names.

    Raises:
        UsageError: ``--steps`` has another number of steps.
        InputRefused: the checkpoints are numbered in different units.

    """
    if options.steps is not None:
        if len(options.steps) != len(checkpoints):
            counts = f"{plural(len(options.steps), 'step')} for {plural(len(checkpoints), 'checkpoint')}"
            hint = "give one step per checkpoint, in the order of the arguments"
            raise UsageError(f"--steps gives {counts}", hint=hint)
        return [FoundStep(value=value, unit="step", source="--steps") for value in options.steps]
    sources = (
        [step_inside(checkpoint, "step") for checkpoint in checkpoints],
        [step if step and step.unit == "step" else None for step in named],
        [step_inside(checkpoint, "epoch") for checkpoint in checkpoints],
        [step if step and step.unit == "epoch" else None for step in named],
    )
    for source in sources:
        if all(source) and not _is_constant(source):
            return source
    _refuse_mixed_units(checkpoints, named, options)
    return [None] * len(checkpoints)


def check_missing_steps(
    checkpoints: Sequence[Checkpoint], named: Sequence[FoundStep | None], options: Options
) -> list[RunWarning]:
    """Return a warning if some checkpoints have a step and others have none, or if numbers in names are not steps.

    Raises:
        UsageError: under ``--order step``, instead of the warning.

    """
    inside = [next(iter(checkpoint.steps), None) for checkpoint in checkpoints]
    steps = max(inside, list(named), key=lambda steps: sum(step is not None for step in steps))
    without = [quoted(c.path.name) for c, step in zip(checkpoints, steps, strict=True) if step is None]
    if len(without) == len(checkpoints):
        numbers = {tuple(re.findall(r"\d+", checkpoint.path.stem)) for checkpoint in checkpoints}
        if options.order == "step" or len(numbers) == 1:
            return []
        message = "the numbers in the names are not steps: the checkpoints are ordered by name, which may be wrong"
        return [RunWarning(code="order-doubtful", message=message, hint=ORDER_HINT)]
    source = next(step.source for step in steps if step)
    message = f"{len(checkpoints) - len(without)} of {len(checkpoints)} checkpoints have a step ({source}), "
    message += f"but {shortlist(without)} has none"
    hint = f"leave out the checkpoints without a step; or {ORDER_HINT}"
    if options.order == "step":
        raise UsageError(message, hint=hint)
    message += ": the checkpoints are ordered by name, which may be wrong"
    return [RunWarning(code="steps-incomplete", message=message, hint=hint)]


def step_inside(checkpoint: Checkpoint, unit: str) -> FoundStep | None:
    """Return the best step of a unit inside a checkpoint."""
    return next((step for step in checkpoint.steps if step.unit == unit), None)


def steps_in_names(checkpoints: Sequence[Checkpoint], inside: Sequence[Folded]) -> list[FoundStep | None]:
    """Read steps from the paths below the common folder (``checkpoint-500/model.pt``), else from the file names.

    If there are checkpoints ``inside`` a previous average of the same run, their names help to read the new names.
    """
    if inside:
        return _steps_like_those_inside(checkpoints, inside)
    paths = [absolute(checkpoint.path).split("/") for checkpoint in checkpoints]
    folders = zip(*(path[:-1] for path in paths), strict=False)
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, folders))
    below = steps_from_names(["/".join(path[common:]) for path in paths])
    steps = below if all(below) else steps_from_names([path[-1] for path in paths])
    return [_found_in_name(step) for step in steps]


def _steps_like_those_inside(checkpoints: Sequence[Checkpoint], inside: Sequence[Folded]) -> list[FoundStep | None]:
    """Read steps from the names together with those inside a previous average, if these give the steps they had."""
    known = [folded.name for folded in inside]
    names = [name_of(absolute(checkpoint.path), name_depth(known)) for checkpoint in checkpoints]
    series = list(dict.fromkeys([*known, *names]))
    steps = dict(zip(series, steps_from_names(series), strict=True))
    if any(found is None or found.value != folded.step for folded in inside for found in [steps[folded.name]]):
        return [None] * len(checkpoints)
    return [_found_in_name(steps[name]) for name in names]


def _found_in_name(step: NamedStep | None) -> FoundStep | None:
    return FoundStep(value=step.value, unit=step.unit, source="name") if step else None


def _is_constant(steps: Sequence[FoundStep | None]) -> bool:
    """Whether all checkpoints have the same step: then it is not a step of the run."""
    return len(steps) > 1 and len({step.value for step in steps if step}) == 1


def _refuse_mixed_units(checkpoints: Sequence[Checkpoint], named: Sequence[FoundStep | None], options: Options) -> None:
    if options.order not in ("auto", "step"):
        return
    best = [next(iter(c.steps), None) or name for c, name in zip(checkpoints, named, strict=True)]
    by_unit: dict[str, list[str]] = defaultdict(list)
    for checkpoint, step in zip(checkpoints, best, strict=True):
        if step:
            by_unit[step.unit].append(f"{quoted(checkpoint.path.name)} has {step.unit} {step.value:,}")
    if len(by_unit) > 1:
        examples = shortlist(found[0] for found in by_unit.values())
        raise InputRefused(f"the checkpoints are numbered in different units: {examples}", hint=ORDER_HINT)
