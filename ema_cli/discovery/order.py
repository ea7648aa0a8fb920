"""Put the checkpoints of a run in order, oldest first, and say why: an EMA in the wrong order is another model.

Input -> output: opened checkpoints -> ``Series``. The steps of a series come from one source: ``--steps``, inside
every file, every name, or none; sources are never mixed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, takewhile

from ema_cli.discovery.checkpoints import Found
from ema_cli.errors import InputRefused, NothingMatched, RunWarning, UsageError
from ema_cli.naming import NamedStep, name_depth, name_of, natural_key, steps_from_names
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint, Folded, FoundStep, OrderedCheckpoint, Series
from ema_cli.storage.locations import absolute
from ema_cli.text import plural, quoted, shortlist

_BY_HAND = "set the order with --order name or --order given, or the steps with --steps"


def order_series(found: Found, options: Options, inside: Sequence[Folded] = ()) -> Series:
    """Order and select the checkpoints as ``options`` ask.

    Args:
        found: the checkpoints.
        options: how to order them, what to select.
        inside: checkpoints of a previous average of the same run; their names help to read the new names.

    Raises:
        UsageError: the options do not fit the checkpoints.
        InputRefused: two checkpoints have the same step, or they are numbered in different units.
        NothingMatched: none was selected.

    """
    named = _named_steps(found.checkpoints, inside)
    steps = _steps_of(found.checkpoints, named, options)
    members = [
        OrderedCheckpoint(checkpoint=checkpoint, step=step, weight=weight)
        for checkpoint, step, weight in zip(found.checkpoints, steps, _weights_of(found, options), strict=True)
    ]
    if not any(steps) and options.order in ("auto", "step"):
        warnings = _incomplete(found.checkpoints, named, options)
    else:
        warnings = []
    ordered, reason = _sorted(members, options)
    return Series(
        members=tuple(_select(ordered, options)),
        reason=reason,
        unit=_unit(ordered, options),
        found=found.checkpoints,
        skipped=found.skipped,
        warnings=(*found.warnings, *warnings, *_warnings(ordered), *_contradictions(ordered, options)),
    )


def _weights_of(found: Found, options: Options) -> Sequence[float | None]:
    """Return the weight that the user gave each checkpoint."""
    count = len(found.checkpoints)
    if options.weights is None:
        return [None] * count
    if len(options.weights) != count:
        skipped = f"; skipped {shortlist(quoted(entry.path.name) for entry in found.skipped)}" if found.skipped else ""
        raise UsageError(
            f"there are {plural(len(options.weights), 'weight')} for {plural(count, 'checkpoint')}{skipped}",
            hint="give one weight per checkpoint, in the order of the arguments",
        )
    return options.weights


def _unit(members: Sequence[OrderedCheckpoint], options: Options) -> str:
    """Return the unit of the steps: from the user, or as found."""
    if options.clock is not None:
        return options.clock.removesuffix("s")
    return next((member.step.unit for member in members if member.step), "checkpoint")


def _steps_of(
    checkpoints: Sequence[Checkpoint], named: Sequence[FoundStep | None], options: Options
) -> Sequence[FoundStep | None]:
    """Return the step of each checkpoint, all from one source, or ``None`` for all."""
    if options.steps is not None:
        if len(options.steps) != len(checkpoints):
            counts = f"{plural(len(options.steps), 'step')} for {plural(len(checkpoints), 'checkpoint')}"
            raise UsageError(
                f"--steps gives {counts}", hint="give one step per checkpoint, in the order of the arguments"
            )
        return [FoundStep(value=value, unit="step", source="--steps") for value in options.steps]
    sources = (
        [_inside(checkpoint, "step") for checkpoint in checkpoints],
        [step if step and step.unit == "step" else None for step in named],
        [_inside(checkpoint, "epoch") for checkpoint in checkpoints],
        [step if step and step.unit == "epoch" else None for step in named],
    )
    for source in sources:
        if all(source) and not _is_constant(source):
            return source
    _refuse_mixed_units(checkpoints, named, options)
    return [None] * len(checkpoints)


def _incomplete(
    checkpoints: Sequence[Checkpoint], named: Sequence[FoundStep | None], options: Options
) -> list[RunWarning]:
    """Warn, or under ``--order step`` refuse, when some checkpoints have a step and others have none."""
    inside = [next(iter(checkpoint.steps), None) for checkpoint in checkpoints]
    steps = max(inside, list(named), key=lambda steps: sum(step is not None for step in steps))
    without = [quoted(c.path.name) for c, step in zip(checkpoints, steps, strict=True) if step is None]
    if len(without) == len(checkpoints):
        numbers = {tuple(re.findall(r"\d+", checkpoint.path.stem)) for checkpoint in checkpoints}
        if options.order == "step" or len(numbers) == 1:
            return []
        message = "the numbers in the names are not steps: the order is that of the names, and may be wrong"
        return [RunWarning(code="order-doubtful", message=message, hint=_BY_HAND)]
    source = next(step.source for step in steps if step)
    message = f"{len(checkpoints) - len(without)} of {len(checkpoints)} checkpoints have a step ({source}), "
    message += f"but {shortlist(without)} has none"
    if options.order == "step":
        raise UsageError(message, hint=f"leave out the checkpoints without a step; or {_BY_HAND}")
    message += ": the order is that of the names, and may be wrong"
    return [
        RunWarning(
            code="steps-incomplete", message=message, hint=f"leave out the checkpoints without a step; or {_BY_HAND}"
        )
    ]


def _inside(checkpoint: Checkpoint, unit: str) -> FoundStep | None:
    return next((step for step in checkpoint.steps if step.unit == unit), None)


def _named_steps(checkpoints: Sequence[Checkpoint], inside: Sequence[Folded]) -> list[FoundStep | None]:
    """Read steps from the paths below the common folder (``checkpoint-500/model.pt``), else from the file names."""
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
    known = [one.name for one in inside]
    names = [name_of(absolute(checkpoint.path), name_depth(known)) for checkpoint in checkpoints]
    series = list(dict.fromkeys([*known, *names]))
    steps = dict(zip(series, steps_from_names(series), strict=True))
    if any(found is None or found.value != one.step for one in inside for found in [steps[one.name]]):
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
        examples = shortlist(places[0] for places in by_unit.values())
        raise InputRefused(f"the checkpoints are numbered in different units: {examples}", hint=_BY_HAND)


def _sorted(members: list[OrderedCheckpoint], options: Options) -> tuple[list[OrderedCheckpoint], str]:
    stepped = [member.step for member in members if member.step]
    order = options.order
    if order == "step" and not stepped:
        raise UsageError(
            "--order step, but the checkpoints have no steps, neither inside nor in their names", hint=_BY_HAND
        )
    if order == "given":
        return members, "as given"
    if order == "mtime":
        return sorted(members, key=lambda m: m.checkpoint.index.version), "by modification time"
    if order == "name" or not stepped:
        return sorted(members, key=lambda m: natural_key(str(m.checkpoint.path))), "by name, in natural order"
    _refuse_equal_steps(members)
    unit = stepped[0].unit
    return sorted(members, key=lambda m: m.step.value if m.step else 0), f"by {unit} ({stepped[0].source})"


def _refuse_equal_steps(members: Sequence[OrderedCheckpoint]) -> None:
    """Refuse two files of one step: they are copies, or of two runs."""
    by_step: dict[int, list[str]] = defaultdict(list)
    for member in members:
        if member.step:
            by_step[member.step.value].append(quoted(str(member.checkpoint.path)))
    twice = [f"{step:,}: {', '.join(paths)}" for step, paths in sorted(by_step.items()) if len(paths) > 1]
    if twice:
        raise InputRefused(
            f"checkpoints have the same {members[0].step.unit if members[0].step else 'step'}: {shortlist(twice)}",
            hint=f"two runs? use ema-avg batch; two copies? leave one out; otherwise {_BY_HAND}",
        )


def _select(members: Sequence[OrderedCheckpoint], options: Options) -> Sequence[OrderedCheckpoint]:
    if options.from_step is not None or options.to_step is not None:
        if not all(member.step for member in members):
            raise UsageError("--from and --to need the step of every checkpoint", hint="give the steps with --steps")
        first = options.from_step if options.from_step is not None else float("-inf")
        last = options.to_step if options.to_step is not None else float("inf")
        steps = [member.step for member in members if member.step]
        members = [member for member in members if member.step and first <= member.step.value <= last]
        if not members:
            raise _nothing_selected(steps, options)
    members = members[::-1][:: options.every][::-1]
    return members[-options.last :] if options.last else members


def _nothing_selected(steps: Sequence[FoundStep], options: Options) -> NothingMatched:
    first, last, unit = options.from_step, options.to_step, steps[0].unit
    if last is None:
        asked = f"at or after {unit} {first:,}"
    else:
        asked = f"at or before {unit} {last:,}" if first is None else f"from {unit} {first:,} to {last:,}"
    values = [step.value for step in steps]
    message = f"no checkpoint {asked} (there are {unit}s {min(values):,} to {max(values):,})"
    return NothingMatched(message, hint="change --from or --to")


def _contradictions(members: Sequence[OrderedCheckpoint], options: Options) -> list[RunWarning]:
    """Warn if --steps gives the checkpoints another order than the steps inside them."""
    inside = [_inside(member.checkpoint, "step") for member in members]
    found = [step.value for step in inside if step]
    if options.steps is None or len(found) < len(members) or found == sorted(found):
        return []
    wrong = next(a for a, b in pairwise(members) if _value(a) > _value(b))
    name, own = quoted(wrong.checkpoint.path.name), _value(wrong)
    message = f"--steps gives {wrong.step.value if wrong.step else 0:,} for {name}, but the step inside is {own:,}, "
    message += "and the order differs"
    hint = "--steps follows the order of the arguments; a shell sorts ckpt_1000 before ckpt_200"
    return [RunWarning(code="steps-contradict", message=message, hint=hint)]


def _value(member: OrderedCheckpoint) -> int:
    step = _inside(member.checkpoint, "step")
    return step.value if step else 0


def _warnings(members: Sequence[OrderedCheckpoint]) -> list[RunWarning]:
    """Warn when the order contradicts the steps."""
    warnings = []
    steps = [member.step.value for member in members if member.step]
    if steps != sorted(steps):
        warnings.append(
            RunWarning(
                code="order-against-steps",
                message="the checkpoints are not averaged in the order of their steps",
            )
        )
    return warnings
