"""Put the checkpoints of a run in order, oldest first, with the reason: an EMA in the wrong order is another model.

Input -> output: opened checkpoints -> ``Series``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ema_cli.discovery.checkpoints import Found
from ema_cli.discovery.series_steps import ORDER_HINT, check_missing_steps, step_inside, steps_in_names, steps_of
from ema_cli.errors import InputRefused, NothingMatched, RunWarning, UsageError
from ema_cli.naming import natural_key
from ema_cli.options.average import Options
from ema_cli.records.series import Folded, FoundStep, OrderedCheckpoint, Series
from ema_cli.text import plural, quoted, shortlist


def order_series(found: Found, options: Options, inside: Sequence[Folded] = ()) -> Series:
    """Order and select the checkpoints. The names of those ``inside`` a previous average help to read steps from names.

    Raises:
        UsageError: the options do not fit the checkpoints.
        InputRefused: two checkpoints have the same step, or they are numbered in different units.
        NothingMatched: none was selected.

    """
    named = steps_in_names(found.checkpoints, inside)
    steps = steps_of(found.checkpoints, named, options)
    members = [
        OrderedCheckpoint(checkpoint=checkpoint, step=step, weight=weight)
        for checkpoint, step, weight in zip(found.checkpoints, steps, _weights_of(found, options), strict=True)
    ]
    by_name = not any(steps) and options.order in ("auto", "step")
    warnings = check_missing_steps(found.checkpoints, named, options) if by_name else []
    ordered, reason = _sorted(members, options)
    return Series(
        members=tuple(_select(ordered, options)),
        reason=reason,
        unit=_unit(ordered, options),
        found=found.checkpoints,
        skipped=found.skipped,
        warnings=(*found.warnings, *warnings, *_contradictions(ordered, options)),
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


def _sorted(members: list[OrderedCheckpoint], options: Options) -> tuple[list[OrderedCheckpoint], str]:
    stepped = [member.step for member in members if member.step]
    order = options.order
    if order == "step" and not stepped:
        raise UsageError(
            "--order step, but the checkpoints have no steps, neither inside nor in their names", hint=ORDER_HINT
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
    """Refuse two files with the same step: they are copies, or from two runs."""
    by_step: dict[int, list[str]] = defaultdict(list)
    for member in members:
        if member.step:
            by_step[member.step.value].append(quoted(str(member.checkpoint.path)))
    twice = [f"{step:,}: {', '.join(paths)}" for step, paths in sorted(by_step.items()) if len(paths) > 1]
    if twice:
        raise InputRefused(
            f"checkpoints have the same {members[0].step.unit if members[0].step else 'step'}: {shortlist(twice)}",
            hint=f"two runs? use ema-avg batch; two copies? leave one out; otherwise {ORDER_HINT}",
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


def _contradictions(members: Sequence[OrderedCheckpoint], options: Options) -> Iterator[RunWarning]:
    """Yield warnings if the order contradicts the steps, or ``--steps`` the order of the steps inside."""
    steps = [member.step.value for member in members if member.step]
    if steps != sorted(steps):
        message = "the checkpoints are not averaged in the order of their steps"
        yield RunWarning(code="order-against-steps", message=message)
    inside = [step.value for member in members if (step := step_inside(member.checkpoint, "step"))]
    if options.steps is None or len(inside) < len(members) or inside == sorted(inside):
        return
    wrong, own = next((member, a) for member, (a, b) in zip(members, pairwise(inside), strict=False) if a > b)
    message = f"--steps gives {wrong.step.value if wrong.step else 0:,} for {quoted(wrong.checkpoint.path.name)}, "
    message += f"but the step inside is {own:,}, and the order differs"
    hint = "--steps follows the order of the arguments; a shell sorts ckpt_1000 before ckpt_200"
    yield RunWarning(code="steps-contradict", message=message, hint=hint)
