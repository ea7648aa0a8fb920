"""The inputs listed in a report, opened and compared with their description there.

Paths in a report are relative to the working directory of its run. They are tried relative to the current directory,
then to the folder of the output. If both files exist, the one with the reported fingerprint is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.fold.content_digests import digest_of
from ema_cli.formats.open import open_checkpoint
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint, Role
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, locate
from ema_cli.storage.url import Url
from ema_cli.text import plural, quoted
from ema_cli.verify.output import Check, WrittenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInput:
    """An input as reported, and the file as it is now."""

    reported: Input
    checkpoint: Checkpoint | None
    """The open file; ``None`` if it cannot be used."""
    failure: str
    """Why the file cannot be used; empty if it can."""
    averaged: frozenset[str]
    """Names of the tensors covered by the digest of the contents."""

    def hashed_bytes(self, *, contents: bool) -> int:
        """Return the number of bytes to read for the digest, 0 if the report has none."""
        if self.checkpoint is None:
            return 0
        if self.reported.sha256 is not None:
            return self.checkpoint.index.size()
        layouts = self.checkpoint.index.layouts if contents and self.reported.content is not None else ()
        return sum(layout.nbytes for layout in layouts if layout.name in self.averaged)


def open_inputs(report: Report, output: WrittenOutput, opened: ExitStack, listener: Listener) -> list[FoundInput]:
    """Open every input of a report, if it can be used, until ``opened`` is closed.

    Raises:
        InputChanged: the system cannot open a file, for a reason that is not the file's.

    """
    pool = LayoutPool()
    found = []
    for done, reported in enumerate(report.inputs):
        listener(Opening(done=done, total=len(report.inputs)))
        checkpoint, failure = _find(reported, report, output, opened, pool)
        averaged = _averaged(report, done)
        found.append(FoundInput(reported=reported, checkpoint=checkpoint, failure=failure, averaged=averaged))
    return found


def _averaged(report: Report, number: int) -> frozenset[str]:
    """Return the tensors that an input contributes to: averaged, or concatenated of it and others."""
    return frozenset(
        tensor.name
        for tensor in report.averages[0].tensors
        if tensor.action == Action.AVERAGED
        or (tensor.action == Action.CONCATENATED and tensor.pieces is not None and number in tensor.pieces.inputs)
    )


def _find(
    reported: Input, report: Report, output: WrittenOutput, opened: ExitStack, pool: LayoutPool
) -> tuple[Checkpoint | None, str]:
    """Return the open file of an input; ``None`` and the reason if it cannot be used."""
    try:
        checkpoint = _open(reported, report, output.path.parent, opened, pool)
    except (InputRefused, NothingMatched, UsageError) as refused:
        return None, refused.message
    if not output.identity.isdisjoint(checkpoint.index.identity):
        return None, f"{quoted(reported.path)} was overwritten by this output: nothing can be recomputed from it"
    if reported.role == Role.AVERAGE and checkpoint.fingerprint != reported.fingerprint:
        return None, f"{quoted(reported.path)} is no longer the previous average: nothing can be recomputed from it"
    return checkpoint, ""


def _open(reported: Input, report: Report, folder: Location, opened: ExitStack, pool: LayoutPool) -> Checkpoint:
    """Open the file of an input, with the key and prefix of the run."""
    keys, strip_prefix = _texts(report.command.options.get("key")), _text(report.command.options.get("strip_prefix"))
    if reported.role == Role.AVERAGE:
        keys, strip_prefix = (), ""  # an output of this program is flat, and its names are final
    written = {name for tensor in report.averages[0].tensors for name in (tensor.name, *tensor.stands_for)}
    usable: list[Checkpoint] = []
    failures: list[EmaAvgError] = []
    for path in _candidates(reported.path, folder):
        try:
            checkpoint = open_checkpoint(
                path, pool=pool, keys=keys, strip_prefix=strip_prefix, wanted=written.__contains__
            )
        except (InputRefused, NothingMatched, UsageError) as failure:
            failures.append(failure)
            continue
        opened.callback(checkpoint.index.close)
        usable.append(checkpoint)
        if checkpoint.fingerprint == reported.fingerprint:
            return checkpoint
    if usable:
        return usable[0]
    raise next((failure for failure in failures if not isinstance(failure, NothingMatched)), failures[0])


def _candidates(path: str, folder: Location) -> tuple[Location, ...]:
    """Return the locations that a path in a report can mean."""
    location = locate(path)
    return (location,) if isinstance(location, Url) else tuple(dict.fromkeys((location, folder / path)))


def _text(option: object) -> str | None:
    return option if isinstance(option, str) else None


def _texts(option: object) -> tuple[str, ...]:
    """Return the values of an option in a report: one as text, several as a list, ``None`` for none."""
    listed = option if isinstance(option, list) else [option]
    return tuple(text for text in listed if isinstance(text, str))


def check_input(number: int, found: FoundInput, count: Counted, *, contents: bool) -> Check:
    """Compare an input with its description in the report; with ``contents``, also the digest of its averaged tensors.

    A reported digest takes precedence over modification times.

    Raises:
        InputChanged: the file cannot be read to its end.

    """
    name = f"input {number}"
    if found.checkpoint is None:
        return Check(name=name, ok=False, message=found.failure)
    path = quoted(str(found.checkpoint.path))
    differences = list(_differences(found, found.checkpoint, count, contents=contents))
    if differences:
        return Check(name=name, ok=False, message=f"{path} {', '.join(differences)}")
    state = "is unchanged"
    if found.checkpoint.fingerprint != found.reported.fingerprint:
        state = f"was touched, but has the same {'bytes' if found.reported.sha256 is not None else 'weights'}"
    return Check(name=name, ok=True, message=f"{path} {state}")


def _differences(found: FoundInput, checkpoint: Checkpoint, count: Counted, *, contents: bool) -> Iterator[str]:
    """Yield how an input differs from its description in the report."""
    reported, nbytes = found.reported, checkpoint.index.size()
    by_content = contents and reported.content is not None and reported.sha256 is None
    if nbytes != reported.bytes:
        yield f"has {plural(nbytes, 'byte')}, not {reported.bytes:,} as reported"
    digest = sha256_of_all(checkpoint.index.sources, count.add) if reported.sha256 is not None else None
    if digest != reported.sha256:
        yield f"has the SHA-256 {digest}, not {quoted(reported.sha256 or '')} as reported"
    content = digest_of(checkpoint.index, found.averaged, count.add) if by_content else reported.content
    if content != reported.content:
        yield f"has different weights: their digest is {content}, not {quoted(reported.content or '')} as reported"
    then, now = (text.rpartition("-") for text in (reported.fingerprint, checkpoint.fingerprint))
    if then[2] != now[2]:
        yield f"has a different structure: its digest is {now[2]}, not {quoted(then[2])} as reported"
    elif then[0] != now[0] and nbytes == reported.bytes and reported.sha256 is None and not by_content:
        yield (
            f"was changed or touched: its fingerprint is {checkpoint.fingerprint}, "
            f"not {quoted(reported.fingerprint)} as reported"
        )
