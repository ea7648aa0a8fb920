"""Continue a previous average: fold new checkpoints into it as if all had been averaged at once.

Input -> output: the previous average, and the ordered checkpoints of the command line -> a ``Series`` of the previous
average, its last checkpoint where a method needs it, and the new checkpoints. Checkpoints that are already in the
average are recognized by their step, or by their name where they have none; contradictions are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ema_cli.continuation.last_checkpoint import last_step, read_last_checkpoint
from ema_cli.continuation.previous_average import PreviousAverage, open_previous
from ema_cli.discovery.checkpoints import Found, close_all
from ema_cli.discovery.order import order_series
from ema_cli.errors import InputRefused, NothingNew, RunWarning
from ema_cli.naming import name_depth, name_of, natural_key
from ema_cli.options.average import Options
from ema_cli.planning.outputs import output_path
from ema_cli.records.series import Continuation, Folded, OrderedCheckpoint, Role, Series, Skipped
from ema_cli.storage.locations import Location, absolute
from ema_cli.storage.url import Url
from ema_cli.text import plural, quoted, shortlist
from ema_cli.weights.solve import continuation_factors, solve
from ema_cli.weights.timeline import Timeline

_PRECISE_BYTES = 4
"""An average stored with fewer bytes per number is rounded visibly each time it is continued."""


@dataclass(slots=True)
class _Sorted:
    """The checkpoints of the command line, compared with the previous average."""

    fresh: list[OrderedCheckpoint] = field(default_factory=list)
    last: OrderedCheckpoint | None = None
    """The last checkpoint inside the previous average, if it was named."""
    skipped: list[Skipped] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Checkpoints that belong before the end of the previous average, so they cannot be added."""


def continue_series(found: Found, options: Options, opened: ExitStack) -> Series:
    """Return the series that continues the average ``options.continue_from`` with the checkpoints that are new.

    The files that are opened here, the previous average and maybe its last checkpoint, stay open until ``opened`` is
    closed.

    Raises:
        NothingNew: there are no new checkpoints, and the output is not the previous average itself.
        NothingMatched: the last checkpoint inside is needed, and was not found.
        InputRefused: the average cannot be continued; the message says why.
        UsageError: it was made with other options.

    """
    assert options.continue_from is not None  # noqa: S101 - asked by the caller
    previous = open_previous(options.continue_from, options)
    opened.callback(close_all, [previous.checkpoint])
    series = _continued(previous, order_series(found, options, previous.known_names), options)
    opened.callback(close_all, [member.checkpoint for member in series.members])
    return series


def _continued(previous: PreviousAverage, series: Series, options: Options) -> Series:
    _refuse_snapshots(previous, series)
    found = _sort_out(previous, series, options)
    if not found.fresh and not _in_place(previous, options):
        raise _nothing_new(previous, found.late)
    scale, last_factor = _factors(previous, found.fresh, series.unit)
    last, warnings = None, list[RunWarning]()
    if last_factor:
        last, warnings = read_last_checkpoint(previous, found.last, found.fresh[0].checkpoint, options)
    average = OrderedCheckpoint(checkpoint=previous.checkpoint, step=last_step(previous), role=Role.AVERAGE)
    skipped = [entry for entry in found.skipped if last is None or entry.path != last.checkpoint.path]
    return replace(
        series,
        members=(average, *([last] if last else []), *found.fresh),
        skipped=(*series.skipped, *skipped),
        warnings=(*series.warnings, *_warn_of_late(found.late, previous.name), *_warn_of_rounding(previous), *warnings),
        continuation=Continuation(
            path=previous.checkpoint.path,
            method=previous.method,
            folded=previous.folded,
            scale=scale,
            last_factor=last_factor,
            lacking=previous.lacking,
            from_snapshot=previous.from_snapshot,
        ),
    )


def _refuse_snapshots(previous: PreviousAverage, series: Series) -> None:
    """Refuse to fold snapshots of a live EMA into an earlier one: the later ones contain its steps already."""
    if previous.checkpoint.is_snapshot and any(member.checkpoint.is_snapshot for member in series.members):
        raise InputRefused(
            f"{previous.name} is a snapshot of a live EMA, and so are the new checkpoints: the latest contains the "
            "steps of the others",
            hint="use the latest snapshot as it is; or continue from this one with checkpoints of the model",
        )


def _nothing_new(previous: PreviousAverage, late: Sequence[str]) -> NothingNew:
    inside = f"{plural(len(previous.folded), 'checkpoint')} up to {previous.step_or_name(previous.last)}"
    missed = f"; not added, because they are from before its end: {shortlist(late)}" if late else ""
    hint = "average all checkpoints at once, without --continue-from" if late else ""
    return NothingNew(f"there are no new checkpoints: {previous.name} already contains {inside}{missed}", hint=hint)


def _in_place(previous: PreviousAverage, options: Options) -> bool:
    """Whether the output is the previous average itself: then it may turn out to be up to date."""
    if options.in_memory:
        return False
    output = output_path(previous.method, options)
    path = previous.checkpoint.path
    if not (isinstance(output, Path) and isinstance(path, Path)):
        return output == path
    return output.exists() and output.samefile(path)


def _factors(previous: PreviousAverage, fresh: Sequence[OrderedCheckpoint], unit: str) -> tuple[float, float]:
    """Return the factor of the previous average, and the additional factor of its last checkpoint."""
    steps = [folded.step for folded in previous.folded]
    steps += [member.step.value if member.step else None for member in fresh]
    timeline = Timeline.of(steps, unit)
    method = previous.method
    factors = continuation_factors(solve(method, timeline.until(len(previous.folded))), solve(method, timeline))
    if factors is None:
        raise InputRefused(
            f"an average by {method.label} cannot be continued: new checkpoints change the relative shares of "
            "those in it",
            hint="average all checkpoints at once, without --continue-from",
        )
    return factors


def _sort_out(previous: PreviousAverage, series: Series, options: Options) -> _Sorted:
    """Separate new checkpoints from those inside, and from those that belong before the end of the average."""
    inside, found = _Inside(previous), _Sorted()
    as_listed = options.order in ("given", "mtime")
    for member in series.members:
        path = member.checkpoint.path
        known = inside.find(member)
        if member.checkpoint.index.identity == previous.checkpoint.index.identity:
            found.skipped.append(Skipped(path=path, reason="the previous average itself", made_by_us=True))
        elif known is not None:
            found.skipped.append(Skipped(path=path, reason=f"already in {previous.name}"))
            found.last = member if known is previous.last else found.last
        elif as_listed or _is_after(member, previous.last):
            found.fresh.append(_with_same_unit(member, previous))
        else:
            reason = f"before {previous.step_or_name(previous.last)}, the last checkpoint in {previous.name}"
            found.skipped.append(Skipped(path=path, reason=reason))
            found.late += [quoted(path.name)] if _is_after(member, previous.folded[0]) else []
    return found


class _Inside:
    """Finds the checkpoint inside an average that a file is."""

    def __init__(self, previous: PreviousAverage) -> None:
        self._previous = previous
        self._by_step = {folded.step: folded for folded in previous.folded if folded.step is not None}
        self._by_name = {folded.name: folded for folded in previous.folded}
        self._depths = sorted({name_depth([folded.name]) for folded in previous.folded})

    def find(self, member: OrderedCheckpoint) -> Folded | None:
        """Look by step, or by name where there are no steps.

        Raises:
            InputRefused: the name is inside, with another step: the steps are not counted as before. Or the name does
                not tell files apart, because a query chooses the file.

        """
        path = absolute(member.checkpoint.path)
        named = next(filter(None, (self._by_name.get(name_of(path, depth)) for depth in self._depths)), None)
        if not self._by_step or member.step is None:
            _refuse_choice(named, member.checkpoint.path)
            return named
        stepped = self._by_step.get(member.step.value)
        if stepped is None and named is not None:
            before, now = self._previous.step_or_name(named), f"{member.step.unit} {member.step.value:,}"
            raise InputRefused(
                f"{quoted(str(member.checkpoint.path))} is {before} in {self._previous.name}, but {now} now "
                f"({member.step.source})",
                hint="give the same steps as before with --steps, in the order of the arguments; or do not name the "
                "file",
            )
        return stepped


def _refuse_choice(named: Folded | None, path: Location) -> None:
    if named is not None and isinstance(path, Url) and path.choice:
        raise InputRefused(
            f"{quoted(str(path))} may be another file than {quoted(named.name)} in the previous average: names do not "
            "tell apart what the query of an address chooses",
            hint="average all checkpoints at once, with --steps in the order of the arguments",
        )


def _is_after(member: OrderedCheckpoint, folded: Folded) -> bool:
    if folded.step is not None and member.step is not None:
        return member.step.value > folded.step
    path = absolute(member.checkpoint.path)
    return natural_key(name_of(path, name_depth([folded.name]))) > natural_key(folded.name)


def _with_same_unit(member: OrderedCheckpoint, previous: PreviousAverage) -> OrderedCheckpoint:
    """Return a new checkpoint if its steps have the unit of those inside."""
    unit = f"{member.step.unit}s" if member.step else "no step"
    if previous.last.step is not None and unit != f"{previous.unit}s":
        raise InputRefused(
            f"{quoted(str(member.checkpoint.path))} has {unit}, but the checkpoints in {previous.name} are numbered "
            f"in {previous.unit}s",
            hint="give the steps with --steps, in the order of the arguments",
        )
    return member


def _warn_of_late(late: Sequence[str], previous: str) -> Iterator[RunWarning]:
    if late:
        message = f"skipped {shortlist(late)}: a checkpoint from before the end of {previous} cannot be added to it"
        hint = "average all checkpoints at once, without --continue-from"
        yield RunWarning(code="late-left-out", message=message, hint=hint)


def _warn_of_rounding(previous: PreviousAverage) -> Iterator[RunWarning]:
    names = {
        layout.dtype.torch_name
        for layout in previous.checkpoint.index.layouts
        if layout.dtype.averaged and layout.dtype.itemsize < _PRECISE_BYTES
    }
    if names:
        yield RunWarning(
            code="continued-from-rounded",
            message=f"{previous.name} is stored as {shortlist(sorted(names))}: the average keeps its rounding error",
            hint="write averages that will be continued with --dtype float32 or float64",
        )
