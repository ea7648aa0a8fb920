"""The inputs that a report lists, opened where it says they are, and compared with their description there.

A report has two paths of an input: relative to the working directory of its run, and to the folder of the output
(``report/input_paths.py``). If there are files at both, the one with the reported fingerprint is used.

Whoever wrote the report chose the paths: a local file may be anywhere, a URL is opened only with permission, no file is
opened twice, and no message shows what is in a file that only the report names.

The previous average of one that was continued is often gone, as it is replaced by each of its successors. Then it is
not compared, and nothing is recomputed from it; it is no failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.fold.content_digests import digest_of
from ema_cli.record import record
from ema_cli.records.series import Checkpoint, Role
from ema_cli.report.input_paths import listed_locations
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.locations import Location, identity_of, is_folder, open_source
from ema_cli.storage.protocols import split_protocol
from ema_cli.text import plural, quoted
from ema_cli.verification.input_reader import InputReader, is_flat
from ema_cli.verification.output import Check, WrittenOutput

NAME_THEM = "name the inputs: ema-avg verify OUT --input CKPT..."
_FROM_THE_RUN = f"the paths are relative to the directory of the run: verify there, or {NAME_THEM}"


@record
class FoundInput:
    """An input as reported, and the file as it is now."""

    reported: Input
    checkpoint: Checkpoint | None
    """The open file; ``None`` if it cannot be used."""
    averaged: frozenset[str]
    """Names of the tensors covered by the digest of the contents."""
    failure: str = ""
    """Why the file cannot be used; empty if it can."""
    hint: str = ""
    missing: bool = False
    """There is no such file."""
    gone: str = ""
    """What became of an average that was replaced since, which is no failure; empty if nothing."""
    named: bool = False
    """The user named the file: it may be a copy, with another time."""
    sha256: str | None = None
    """The digest of its bytes, if it was computed."""
    content: str | None = None
    """The digest of its averaged tensors, if it was computed."""

    def hashed_bytes(self, *, contents: bool) -> int:
        """Return the number of bytes to read for the digest, 0 if it is known or the report has none."""
        if self.checkpoint is None or self.sha256 is not None or self.content is not None:
            return 0
        if self.reported.sha256 is not None:
            return self.checkpoint.index.size()
        layouts = self.checkpoint.index.layouts if contents and self.reported.content is not None else ()
        return sum(layout.nbytes for layout in layouts if layout.name in self.averaged)


def open_inputs(
    report: Report, output: WrittenOutput, opened: ExitStack, listener: Listener, *, allow_remote: bool
) -> list[FoundInput]:
    """Open every input of a report, if it can be used, until ``opened`` is closed.

    Raises:
        InputRefused: the report names a URL with a protocol that is not opened.
        InputChanged: the system cannot open a file, for a reason that is not the file's.

    """
    for reported in report.inputs:
        _check_protocol(reported.path)
    listed = _ListedInputs(InputReader(report, opened), report, output, allow_remote=allow_remote)
    found = []
    for done, reported in enumerate(report.inputs):
        listener(Opening(done=done, total=len(report.inputs)))
        found.append(listed.find(done, reported))
    return found


def _check_protocol(path: str) -> None:
    try:
        split_protocol(path)
    except UsageError as refused:
        hint = f"{NAME_THEM}; --output-only does not open them"
        raise InputRefused(f"an input in the report was not opened: {refused.message}", hint=hint) from refused


class _ListedInputs:
    """Finds the inputs of a report at their paths."""

    def __init__(self, reader: InputReader, report: Report, output: WrittenOutput, *, allow_remote: bool) -> None:
        self._reader, self._report, self._output, self._allow_remote = reader, report, output, allow_remote
        self._opened: dict[tuple[object, bool], Checkpoint | InputRefused] = {}
        """Every file or folder by its identity, and how it was opened: none is opened again."""
        self._chosen: dict[object, int] = {}
        """The number of the input that each is."""

    def find(self, number: int, reported: Input) -> FoundInput:
        """Return an input with its open file, or with the reason why it cannot be used."""
        found = FoundInput(reported=reported, checkpoint=None, averaged=self._reader.averaged(number))
        try:
            checkpoint = self._open(number, reported)
        except NothingMatched as missing:
            if reported.role == Role.AVERAGE:
                return replace(found, gone="missing")
            return replace(found, failure=missing.message, hint=_how_to_find(reported), missing=True)
        except (InputRefused, UsageError) as failed:
            hint = f"{failed.hint}; {NAME_THEM}" if failed.hint else NAME_THEM
            return replace(found, failure=failed.message, hint=hint)
        if not self._output.identity.isdisjoint(checkpoint.index.identity):
            return self._overwritten(found)
        return replace(found, checkpoint=checkpoint)

    def _overwritten(self, found: FoundInput) -> FoundInput:
        """Return an input that is the output: it was continued, or updated, in place; else it is a wrong one."""
        if found.reported.role == Role.AVERAGE or self._report.batch_norm is not None:
            return replace(found, gone="overwritten by this output")
        path = quoted(found.reported.path)
        return replace(found, failure=f"{path} was overwritten by this output: nothing can be recomputed from it")

    def _open(self, number: int, reported: Input) -> Checkpoint:
        """Open the file of an input: of several that it may be, the one with the reported fingerprint."""
        usable: list[tuple[object, Checkpoint]] = []
        failures: list[EmaAvgError] = []
        for path in self._candidates(reported):
            try:
                identity = self._identity(path)
                checkpoint = self._open_one(path, identity, flat=is_flat(reported.role))
            except (InputRefused, NothingMatched, UsageError) as failure:
                failures.append(failure)
                continue
            usable.append((identity, checkpoint))
            if checkpoint.fingerprint == reported.fingerprint:
                usable = usable[-1:]
                break
        if not usable:
            raise next((failure for failure in failures if not isinstance(failure, NothingMatched)), failures[0])
        identity, checkpoint = usable[0]
        first = self._chosen.setdefault(identity, number)
        if first != number:
            raise InputRefused(f"{quoted(str(checkpoint.path))} is the same file as input {first + 1}")
        return checkpoint

    def _candidates(self, reported: Input) -> tuple[Location, ...]:
        output, folder = self._report.averages[0].output, self._output.path.parent
        return listed_locations(reported, output, folder, allow_remote=self._allow_remote)

    def _identity(self, path: Location) -> object:
        """Return what a file or folder is, whatever its name; raise as ``open_source`` if it cannot be opened."""
        if not isinstance(path, Path):
            return path
        if is_folder(path):
            return identity_of(path)
        with open_source(path) as source:
            return source.identity

    def _open_one(self, path: Location, identity: object, *, flat: bool) -> Checkpoint:
        """Open a file or folder. The message of an error shows nothing of its content."""
        known = self._opened.get((identity, flat))
        if known is None:
            try:
                known = self._reader.open(path, flat=flat)
            except InputRefused as refused:
                message = f"{quoted(str(path))} cannot be read as a checkpoint with the options of the run"
                known = InputRefused(message, hint="the reason is shown by: ema-avg inspect CKPT")
                known.__cause__ = refused
            self._opened[identity, flat] = known
        if isinstance(known, InputRefused):
            raise known
        return known


def _how_to_find(reported: Input) -> str:
    """Return what to do about an input that is missing."""
    is_local = not split_protocol(reported.path)[0]
    from_the_run = is_local and reported.path_from_output is None and not Path(reported.path).is_absolute()
    return _FROM_THE_RUN if from_the_run else NAME_THEM


def check_input(number: int, found: FoundInput, count: Counted, *, contents: bool) -> Check:
    """Compare an input with its description in the report; with ``contents``, also the digest of its averaged tensors.

    A reported digest takes precedence over modification times.

    Raises:
        InputChanged: the file cannot be read to its end.

    """
    name = f"input {number}"
    if found.gone:
        return _not_compared(name, found.reported, found.gone)
    if found.checkpoint is None:
        missing = found.reported.path if found.missing else ""
        return Check(name=name, ok=False, message=found.failure, hint=found.hint, missing=missing)
    path = quoted(str(found.checkpoint.path))
    differences = list(_differences(found, found.checkpoint, count, contents=contents))
    if differences and found.reported.role == Role.AVERAGE:
        return _not_compared(name, found.reported, "replaced since then")
    if differences:
        return Check(name=name, ok=False, message=f"{path} {', '.join(differences)}")
    return Check(name=name, ok=True, message=f"{path} {_state(found, found.checkpoint, contents=contents)}")


def _not_compared(name: str, reported: Input, gone: str) -> Check:
    """Pass an input that no longer exists."""
    noun = "previous average" if reported.role == Role.AVERAGE else "input"
    what = f"the {noun} {quoted(reported.path)}"
    message = f"{what} cannot be compared: {gone}"
    return Check(name=name, ok=True, message=message, hint=NAME_THEM, unchecked=f"{what} ({gone})")


def _state(found: FoundInput, checkpoint: Checkpoint, *, contents: bool) -> str:
    """Return in which way an input is as reported."""
    if checkpoint.fingerprint == found.reported.fingerprint:
        return "is unchanged"
    same = "structure"
    if found.reported.sha256 is not None:
        same = "bytes"
    elif contents and found.reported.content is not None:
        same = "weights"
    if found.named:
        return f"has the same {same} as {quoted(found.reported.path)}"
    return f"was touched, but has the same {same}"


def _differences(found: FoundInput, checkpoint: Checkpoint, count: Counted, *, contents: bool) -> Iterator[str]:
    """Yield how an input differs from its description in the report."""
    reported, nbytes = found.reported, checkpoint.index.size()
    by_content = contents and reported.content is not None and reported.sha256 is None
    if nbytes != reported.bytes:
        yield f"has {plural(nbytes, 'byte')}, not {reported.bytes:,} as reported"
    digest = found.sha256
    if reported.sha256 is not None and digest is None:
        digest = sha256_of_all(checkpoint.index.sources, count.add)
    if digest != reported.sha256:
        yield f"has the SHA-256 {digest}, not {quoted(reported.sha256 or '')} as reported"
    content = found.content if by_content else reported.content
    if by_content and content is None:
        content = digest_of(checkpoint.index, found.averaged, count.add)
    if content != reported.content:
        yield f"has different weights: their digest is {content}, not {quoted(reported.content or '')} as reported"
    then, now = (text.rpartition("-") for text in (reported.fingerprint, checkpoint.fingerprint))
    by_time = nbytes == reported.bytes and reported.sha256 is None and not by_content and not found.named
    if then[2] != now[2]:
        yield f"has a different structure: its digest is {now[2]}, not {quoted(then[2])} as reported"
    elif then[0] != now[0] and by_time:
        yield (
            f"was changed or touched: its fingerprint is {checkpoint.fingerprint}, "
            f"not {quoted(reported.fingerprint)} as reported"
        )
