"""Put the checkpoints of a run in order, oldest first, with the reason: an EMA in the wrong order is another model.

Input -> output: opened checkpoints -> ``Series``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ema_cli.discovery.checkpoints import Found
from ema_cli.discovery.model_parts import refuse_parts
from ema_cli.discovery.series_steps import SeriesOrder, order_by_witnesses, refuse_equal_steps, steps_by_hand
from ema_cli.discovery.witnesses import Witness, choose, find_witnesses
from ema_cli.errors import NothingMatched, RunWarning, UsageError
from ema_cli.naming import natural_key
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint, Folded, FoundStep, OrderedCheckpoint, Series
from ema_cli.text import plural, quoted, shortlist


def order_series(found: Found, options: Options, inside: Sequence[Folded] = ()) -> Series:
    """Order and select the checkpoints. The names of those ``inside`` a previous average help to read steps from names.

    Raises:
        UsageError: the options do not fit the checkpoints.
        InputRefused: they are parts of one checkpoint, two have the same step, or they are numbered in different units.
        NothingMatched: none was selected.

    """
    refuse_parts(found.checkpoints, options)
    by_hand = steps_by_hand(found.checkpoints, options) if options.steps is not None else None
    witnesses = find_witnesses(found.checkpoints, inside) if by_hand is None else []
    order = _order(found.checkpoints, by_hand, witnesses, options)
    weights = _weights_of(found, options)
    ordered = [
        OrderedCheckpoint(checkpoint=found.checkpoints[n], step=order.steps[n], weight=weights[n])
        for n in order.positions
    ]
    return Series(
        members=tuple(_select(ordered, options)),
        reason=order.reason,
        unit=_unit(ordered, options),
        found=found.checkpoints,
        skipped=found.skipped,
        warnings=(*found.warnings, *order.warnings, *_contradictions(ordered, options)),
    )


def _order(
    checkpoints: Sequence[Checkpoint],
    by_hand: Sequence[FoundStep | None] | None,
    witnesses: Sequence[Witness],
    options: Options,
) -> SeriesOrder:
    """Return the order that the options ask for, with the steps of the checkpoints."""
    count = range(len(checkpoints))
    chosen = choose(witnesses)
    steps = by_hand or (chosen.steps if chosen else [None] * len(checkpoints))
    if options.order == "given":
        return SeriesOrder(positions=tuple(count), reason="as given", steps=steps)
    if options.order == "mtime":
        by_time = sorted(count, key=lambda n: checkpoints[n].index.version)
        return SeriesOrder(positions=tuple(by_time), reason="by modification time", steps=steps)
    if options.order == "name":
        by_name = sorted(count, key=lambda n: natural_key(str(checkpoints[n].path)))
        return SeriesOrder(positions=tuple(by_name), reason="by name, in natural order", steps=steps)
    if by_hand is None:
        return order_by_witnesses(checkpoints, witnesses, options)
    values = [step.value if step else 0 for step in by_hand]
    refuse_equal_steps(checkpoints, values, "step", options)
    return SeriesOrder(positions=tuple(sorted(count, key=lambda n: values[n])), reason="by step (--steps)", steps=steps)


def _weights_of(found: Found, options: Options) -> Sequence[float | None]:
    """Return the weight that the user gave each checkpoint."""
    count = len(found.checkpoints)
    if options.weights is None:
        return [None] * count
    if len(options.weights) != count:
        skipped = f"; skipped {shortlist(quoted(entry.path.name) for entry in found.skipped)}" if found.skipped else ""
        verb = "is" if len(options.weights) == 1 else "are"
        raise UsageError(
            f"there {verb} {plural(len(options.weights), 'weight')} for {plural(count, 'checkpoint')}{skipped}",
            hint="give one weight per checkpoint, in the order of the arguments",
        )
    return options.weights


def _unit(members: Sequence[OrderedCheckpoint], options: Options) -> str:
    """Return the unit of the steps: from the user, or as found."""
    if options.clock is not None:
        return options.clock.removesuffix("s")
    return next((member.step.unit for member in members if member.step), "checkpoint")


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
    if not options.order_matters:
        return
    steps = [member.step.value for member in members if member.step]
    if steps != sorted(steps):
        message = "the checkpoints are not averaged in the order of their steps"
        yield RunWarning(code="order-against-steps", message=message)
    inside = [step.value for member in members if (step := _step_inside(member.checkpoint))]
    if options.steps is None or len(inside) < len(members) or inside == sorted(inside):
        return
    wrong, own = next((member, a) for member, (a, b) in zip(members, pairwise(inside), strict=False) if a > b)
    message = f"--steps gives {wrong.step.value if wrong.step else 0:,} for {quoted(wrong.checkpoint.path.name)}, "
    message += f"but the step inside is {own:,}, and the order differs"
    hint = "--steps follows the order of the arguments; a shell sorts ckpt_1000 before ckpt_200"
    yield RunWarning(code="steps-contradict", message=message, hint=hint)


def _step_inside(checkpoint: Checkpoint) -> FoundStep | None:
    """Return the best step inside a checkpoint."""
    return next((step for step in checkpoint.steps if step.unit == "step"), None)
