"""The last checkpoint inside a previous average: methods that interpolate between checkpoints read it again.

It is searched by its name, beside the new checkpoints and at its path in the report. The report is untrusted: it may
name any local folder, and a URL only with ``--allow-remote``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.continuation.previous_average import PreviousAverage
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, RunWarning
from ema_cli.formats.open import open_checkpoint
from ema_cli.naming import name_depth, name_of
from ema_cli.options.average import Options
from ema_cli.options.name_filter import name_filter
from ema_cli.records.series import Checkpoint, FoundStep, OrderedCheckpoint, Role
from ema_cli.report.beside import read_report
from ema_cli.report.input_paths import listed_locations
from ema_cli.report.model import Input, Report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, absolute, is_folder, names_in
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_ROOT_PARTS = 2
"""Parts of a URL before the first folder: the protocol, and the bucket or host."""


def last_step(previous: PreviousAverage) -> FoundStep | None:
    """Return the step that a previous average ends with."""
    last = previous.last.step
    return None if last is None else FoundStep(value=last, unit=previous.unit, source="metadata")


def read_last_checkpoint(
    previous: PreviousAverage, named: OrderedCheckpoint | None, first_new: Checkpoint, options: Options
) -> tuple[OrderedCheckpoint, list[RunWarning]]:
    """Return the last checkpoint inside as a member, and a warning unless it is the file that was averaged.

    ``named`` is the checkpoint, if the user named it; otherwise it may be beside ``first_new``.

    Raises:
        NothingMatched: it was not found.
        InputRefused: it was not found, and the report names a URL that may not be opened.

    """
    report = read_report(previous.checkpoint.path)
    known = _last_input(report)
    if named is not None:
        last = replace(named, role=Role.PREVIOUS_LAST)
    else:
        checkpoint = _find(previous, [first_new.path, previous.checkpoint.path], report, options)
        last = OrderedCheckpoint(checkpoint=checkpoint, step=last_step(previous), role=Role.PREVIOUS_LAST)
    if known is None or last.checkpoint.fingerprint == known.fingerprint:
        return last, []
    name = quoted(str(last.checkpoint.path))
    message = f"{name} was changed, moved or copied since it was averaged; its current contents are used"
    hint = "if its contents changed, average all checkpoints at once"
    return last, [RunWarning(code="again-touched", message=message, hint=hint)]


def _last_input(report: Report | None) -> Input | None:
    return report.inputs[-1] if report is not None and report.inputs else None


def _find(
    previous: PreviousAverage, neighbours: Sequence[Location], report: Report | None, options: Options
) -> Checkpoint:
    """Open the checkpoint by its name; of several, the one with the fingerprint in the report."""
    refused: InputRefused | None = None
    known = _last_input(report)
    if report is not None and known is not None:
        output, folder = report.averages[0].output, previous.checkpoint.path.parent
        try:
            listed = listed_locations(known, output, folder, allow_remote=options.allow_remote)
            neighbours = [*neighbours, *listed]
        except InputRefused as error:
            refused = error
    found = _first_usable(previous, neighbours, known, options)
    if found is not None:
        return found
    message = (
        f"the last checkpoint in {previous.name}, {quoted(previous.last.name)} "
        f"({previous.step_or_name(previous.last)}), is needed again: the method interpolates from it to the next "
        "checkpoint"
    )
    hint = "name it too, together with the new checkpoints"
    if refused is not None:
        hint = f"{hint}; or {refused.hint}" if refused.hint else hint
        raise InputRefused(f"{message}; {refused.message}", hint=hint) from refused
    raise NothingMatched(message, hint=hint)


def _first_usable(
    previous: PreviousAverage, neighbours: Sequence[Location], known: Input | None, options: Options
) -> Checkpoint | None:
    usable: Checkpoint | None = None
    wanted = name_filter(options.include, options.exclude)
    for path in _candidates(previous.last.name, neighbours):
        try:
            found = open_checkpoint(
                path, pool=LayoutPool(), keys=options.key, strip_prefix=options.strip_prefix, wanted=wanted
            )
        except EmaAvgError:
            continue
        better = _may_be_last(found, previous) and (
            usable is None or (known and found.fingerprint == known.fingerprint)
        )
        worse = usable if better else found
        usable = found if better else usable
        if worse is not None:
            worse.index.close()
    return usable


def _may_be_last(found: Checkpoint, previous: PreviousAverage) -> bool:
    """Whether the step inside a file, if there is one, is that of the last checkpoint."""
    steps = [step.value for step in found.steps if step.unit == previous.unit]
    return previous.last.step is None or not steps or previous.last.step in steps


def _candidates(name: str, neighbours: Sequence[Location]) -> Iterator[Location]:
    """Yield the files and folders called ``name``, with any suffix, in the folders of ``neighbours``.

    A web server cannot list its files, so there it can only be one of them.
    """
    depth = name_depth([name])
    paths = [path if isinstance(path, Url) else Path(absolute(path)) for path in neighbours]
    yield from (path for path in paths if isinstance(path, Url) and path.is_web and name_of(str(path), depth) == name)
    roots = (_above(path, depth) for path in paths)
    for root in dict.fromkeys(root for root in roots if root is not None):
        folder = (root / name).parent
        try:
            entries = sorted(names_in(folder)) if is_folder(folder) else []
        except OSError:  # it cannot be listed
            continue
        yield from (folder / entry for entry in entries if name_of(str(folder / entry), depth) == name)


def _above(path: Location, depth: int) -> Location | None:
    """Return the folder that is ``depth`` parts above a path, or the highest: ``/``, or a bucket; if there is one."""
    highest = len(path.parts) - (_ROOT_PARTS if isinstance(path, Url) else 1)
    return path.parents[min(depth, highest) - 1] if highest > 0 else None
