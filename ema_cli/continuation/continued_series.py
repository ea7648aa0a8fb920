"""Go on from an earlier output: fold new checkpoints into it as if all had been averaged at once.

Input -> output: the earlier output, and the ordered checkpoints of the command line -> a ``Series`` of the earlier
average, the checkpoint that it ends with where a method needs it, and the new ones. Checkpoints that are in the
average already are known by their step, or by their name where they have none; what contradicts that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ema_cli.continuation.previous_average import PreviousAverage
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, NothingNew, RunWarning
from ema_cli.formats.open import open_checkpoint
from ema_cli.naming import name_depth, name_of, natural_key
from ema_cli.options.average import Options
from ema_cli.planning.outputs import output_path
from ema_cli.records.series import Checkpoint, Continuation, Folded, FoundStep, LeftOut, OrderedCheckpoint, Role, Series
from ema_cli.report.beside import read_report
from ema_cli.report.model import Input
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, absolute, is_folder, locate, names_in
from ema_cli.text import plural, quoted, shortlist
from ema_cli.weights.solve import continuation_factors, solve
from ema_cli.weights.timeline import Timeline

_PRECISE_BYTES = 4
"""An average that is stored in fewer bytes per number is rounded visibly each time it is gone on from."""


@dataclass(slots=True)
class _Sorted:
    """What the checkpoints of the command line are to the earlier average."""

    fresh: list[OrderedCheckpoint] = field(default_factory=list)
    again: OrderedCheckpoint | None = None
    """The checkpoint that it ends with, if it was named."""
    left_out: list[LeftOut] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Those that belong between the checkpoints inside, and came too late."""


def continue_series(earlier: PreviousAverage, series: Series, options: Options) -> Series:
    """Return the series that goes on from ``earlier`` with those checkpoints of ``series`` that are new.

    The file of a checkpoint that has to be read again is opened here if it was not named.

    Raises:
        NothingNew: there are none, and the output is another file than the earlier one.
        NothingMatched: the last checkpoint inside is needed again, and was not found.
        InputRefused: the average cannot be gone on from; the message says why.

    """
    found = _sort_out(earlier, series, options)
    if not found.fresh and not _in_place(earlier, options):
        raise nothing_new(earlier, found.late)
    scale, needs_again = _factors(earlier, found.fresh, series.unit)
    again, warnings = _read_again(earlier, found, options) if needs_again else (None, [])
    return replace(
        series,
        members=tuple(member for member in (_as_member(earlier), again, *found.fresh) if member is not None),
        left_out=(*series.left_out, *(left for left in found.left_out if again is None or not _is(left, again))),
        warnings=(*series.warnings, *_warn_of_late(found.late, earlier.where), *_warn_of_rounding(earlier), *warnings),
        continuation=Continuation(
            path=earlier.checkpoint.path,
            method=earlier.method,
            folded=earlier.folded,
            scale=scale,
            again=needs_again,
            lacking=earlier.lacking,
        ),
    )


def nothing_new(earlier: PreviousAverage, late: Sequence[str] = ()) -> NothingNew:
    """Return the error that there is nothing to fold."""
    inside = f"{plural(len(earlier.folded), 'checkpoint')} up to {earlier.place(earlier.last)}"
    missed = f"; {shortlist(late)} came too late to be folded in" if late else ""
    hint = "average all checkpoints at once, without --continue-from" if late else ""
    return NothingNew(f"nothing is new: {earlier.where} holds {inside}{missed}", hint=hint)


def _in_place(earlier: PreviousAverage, options: Options) -> bool:
    """Whether the earlier output is the one to write: then it may turn out to be up to date."""
    if options.output is None:
        return False
    output = output_path(earlier.method, options)
    there = earlier.checkpoint.path
    if not (isinstance(output, Path) and isinstance(there, Path)):
        return output == there
    return output.exists() and output.samefile(there)


def _factors(earlier: PreviousAverage, fresh: Sequence[OrderedCheckpoint], unit: str) -> tuple[float, float]:
    """Return the factors of the earlier average, and of its last checkpoint besides."""
    steps = [one.step for one in earlier.folded] + [member.step.value if member.step else None for member in fresh]
    timeline = Timeline.of(steps, unit)
    method = earlier.method
    factors = continuation_factors(solve(method, timeline.until(len(earlier.folded))), solve(method, timeline))
    if factors is None:
        raise InputRefused(
            f"an average by {method.label} cannot be gone on from: the new checkpoints change the shares of the "
            "earlier ones against each other",
            hint="average all checkpoints at once, without --continue-from",
        )
    return factors


def _sort_out(earlier: PreviousAverage, series: Series, options: Options) -> _Sorted:
    """Tell new checkpoints from those inside, and from those that came too late to be folded in."""
    inside, found = _Inside(earlier), _Sorted()
    as_listed = options.order in ("given", "mtime")
    for member in series.members:
        path = member.checkpoint.path
        known = inside.find(member)
        if member.checkpoint.index.identity == earlier.checkpoint.index.identity:
            found.left_out.append(LeftOut(path=path, reason="the average itself", ours=True))
        elif known is not None:
            found.left_out.append(LeftOut(path=path, reason=f"already in {earlier.where}"))
            found.again = member if known is earlier.last else found.again
        elif as_listed or _is_after(member, earlier.last):
            found.fresh.append(_with_same_unit(member, earlier))
        else:
            reason = f"before {earlier.place(earlier.last)}, where {earlier.where} ends"
            found.left_out.append(LeftOut(path=path, reason=reason))
            found.late += [quoted(path.name)] if _is_after(member, earlier.folded[0]) else []
    return found


class _Inside:
    """Finds the checkpoint inside an average that a file is."""

    def __init__(self, earlier: PreviousAverage) -> None:
        self._earlier = earlier
        self._by_step = {one.step: one for one in earlier.folded if one.step is not None}
        self._by_name = {one.name: one for one in earlier.folded}
        self._depths = sorted({name_depth([one.name]) for one in earlier.folded})

    def find(self, member: OrderedCheckpoint) -> Folded | None:
        """Look by step, or by name where there are no steps.

        Raises:
            InputRefused: by its name it is inside, but with another step: the steps are not counted as they were.

        """
        path = absolute(member.checkpoint.path)
        named = next((one for d in self._depths if (one := self._by_name.get(name_of(path, d))) is not None), None)
        if not self._by_step or member.step is None:
            return named
        stepped = self._by_step.get(member.step.value)
        if stepped is None and named is not None:
            then, now = self._earlier.place(named), f"{member.step.unit} {member.step.value:,}"
            raise InputRefused(
                f"{quoted(str(member.checkpoint.path))} is in {self._earlier.where} as {then}, but is {now} now "
                f"({member.step.source})",
                hint="give the steps with --steps as they were, in the order of the arguments; or leave that file out",
            )
        return stepped


def _is_after(member: OrderedCheckpoint, one: Folded) -> bool:
    if one.step is not None and member.step is not None:
        return member.step.value > one.step
    path = absolute(member.checkpoint.path)
    return natural_key(name_of(path, name_depth([one.name]))) > natural_key(one.name)


def _with_same_unit(member: OrderedCheckpoint, earlier: PreviousAverage) -> OrderedCheckpoint:
    """Return a new checkpoint if it is numbered as those inside are."""
    unit = f"{member.step.unit}s" if member.step else "no step"
    if earlier.last.step is not None and unit != f"{earlier.unit}s":
        raise InputRefused(
            f"{quoted(str(member.checkpoint.path))} has {unit}, but the checkpoints in {earlier.where} are numbered "
            f"in {earlier.unit}s",
            hint="give the steps with --steps, in the order of the arguments",
        )
    return member


def _warn_of_late(late: Sequence[str], where: str) -> Iterator[RunWarning]:
    if late:
        message = f"{shortlist(late)} would belong between the checkpoints in {where}, but cannot be folded in later"
        hint = "average all checkpoints at once, without --continue-from"
        yield RunWarning(code="late-left-out", message=message, hint=hint)


def _warn_of_rounding(earlier: PreviousAverage) -> Iterator[RunWarning]:
    names = {
        layout.dtype.torch_name
        for layout in earlier.checkpoint.index.layouts
        if layout.dtype.averaged and layout.dtype.itemsize < _PRECISE_BYTES
    }
    if names:
        yield RunWarning(
            code="continued-from-rounded",
            message=f"{earlier.where} is stored as {shortlist(sorted(names))}: what was rounded in it stays rounded",
            hint="write averages that will be gone on from with --dtype float32 or float64",
        )


def _as_member(earlier: PreviousAverage) -> OrderedCheckpoint:
    return OrderedCheckpoint(checkpoint=earlier.checkpoint, step=_last_step(earlier), role=Role.AVERAGE)


def _last_step(earlier: PreviousAverage) -> FoundStep | None:
    last = earlier.last.step
    return None if last is None else FoundStep(value=last, unit=earlier.unit, source="metadata")


def _is(left: LeftOut, member: OrderedCheckpoint) -> bool:
    return left.path == member.checkpoint.path


def _read_again(
    earlier: PreviousAverage, found: _Sorted, options: Options
) -> tuple[OrderedCheckpoint, list[RunWarning]]:
    """Return the last checkpoint inside as a member, and a warning unless it is the very file that was folded."""
    report = read_report(earlier.checkpoint.path)
    known = report.inputs[-1] if report is not None and report.inputs else None
    if found.again is not None:
        again = replace(found.again, role=Role.AGAIN)
    else:
        neighbours = [found.fresh[0].checkpoint.path, earlier.checkpoint.path]
        neighbours += [locate(known.path), earlier.checkpoint.path.parent / known.path] if known is not None else []
        again = OrderedCheckpoint(
            checkpoint=_find_again(earlier, neighbours, known, options), step=_last_step(earlier), role=Role.AGAIN
        )
    if known is None or again.checkpoint.fingerprint == known.fingerprint:
        return again, []
    name = quoted(str(again.checkpoint.path))
    message = f"{name} was changed, moved or copied since it was folded; the average goes on from it as it is now"
    hint = "if its contents changed, average all checkpoints at once"
    return again, [RunWarning(code="again-touched", message=message, hint=hint)]


def _find_again(
    earlier: PreviousAverage, neighbours: Sequence[Location], known: Input | None, options: Options
) -> Checkpoint:
    """Open the last checkpoint inside by its name; of several, the one with the fingerprint in the report."""
    usable: Checkpoint | None = None
    for path in _candidates(earlier.last.name, neighbours):
        try:
            found = open_checkpoint(path, pool=LayoutPool(), key=options.key, strip_prefix=options.strip_prefix)
        except EmaAvgError:
            continue
        better = _may_be(found, earlier) and (usable is None or (known and found.fingerprint == known.fingerprint))
        worse = usable if better else found
        usable = found if better else usable
        if worse is not None:
            worse.index.close()
    if usable is not None:
        return usable
    raise NothingMatched(
        f"the last checkpoint in {earlier.where}, {quoted(earlier.last.name)} ({earlier.place(earlier.last)}), is "
        "needed again: the line from it to the next one is part of the average",
        hint="name it too, beside the new ones",
    )


def _may_be(found: Checkpoint, earlier: PreviousAverage) -> bool:
    """Whether the step inside a file, if there is one, is that of the last checkpoint."""
    steps = [step.value for step in found.steps if step.unit == earlier.unit]
    return earlier.last.step is None or not steps or earlier.last.step in steps


def _candidates(name: str, neighbours: Sequence[Location]) -> Iterator[Location]:
    """Yield the files and folders called ``name``, whatever their suffix, that lie where ``neighbours`` do."""
    depth = name_depth([name])
    places = [locate(absolute(path)) for path in neighbours]
    for root in dict.fromkeys(path.parents[min(depth, len(path.parts) - 1) - 1] for path in places):
        folder = (root / name).parent
        if is_folder(folder):
            yield from (folder / one for one in sorted(names_in(folder)) if name_of(str(folder / one), depth) == name)
