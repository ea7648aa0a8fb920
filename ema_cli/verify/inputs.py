"""The inputs that a report lists, opened where it says they are, and compared with their description there.

Paths in a report are relative to the working directory of its run. They are tried relative to the current directory,
then to the folder of the output. If both files exist, the one with the reported fingerprint is used.

Whoever wrote the report chose the paths: a local file may be anywhere, a URL is opened only with permission, no file is
opened twice, and no message shows what is in a file that only the report names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.fold.content_digests import digest_of
from ema_cli.records.series import Checkpoint, Role
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.locations import Location, identity_of, is_folder, locate_listed, open_source
from ema_cli.storage.protocols import split_protocol
from ema_cli.storage.url import Url
from ema_cli.text import plural, quoted
from ema_cli.verify.input_reader import InputReader, is_flat
from ema_cli.verify.output import Check, WrittenOutput

NAME_THEM = "name the inputs: ema-avg verify OUT --input CKPT..."


@dataclass(frozen=True, slots=True, kw_only=True)
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
    listed = _ListedInputs(InputReader(report, opened), output, allow_remote=allow_remote)
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

    def __init__(self, reader: InputReader, output: WrittenOutput, *, allow_remote: bool) -> None:
        self._reader, self._output, self._allow_remote = reader, output, allow_remote
        self._taken: dict[object, int] = {}
        """The number of the input that each file or folder is, by its identity."""

    def find(self, number: int, reported: Input) -> FoundInput:
        """Return an input with its open file, or with the reason why it cannot be used."""
        averaged = self._reader.averaged(number)
        try:
            checkpoint = self._open(number, reported)
        except (InputRefused, NothingMatched, UsageError) as failed:
            hint = f"{failed.hint}; {NAME_THEM}" if failed.hint else NAME_THEM
            return FoundInput(reported=reported, checkpoint=None, averaged=averaged, failure=failed.message, hint=hint)
        failure = failure_of(checkpoint, reported, self._output)
        return FoundInput(
            reported=reported, checkpoint=None if failure else checkpoint, averaged=averaged, failure=failure
        )

    def _open(self, number: int, reported: Input) -> Checkpoint:
        """Open the file of an input: of several that it may be, the one with the reported fingerprint."""
        usable: list[Checkpoint] = []
        failures: list[EmaAvgError] = []
        for path in self._candidates(reported.path):
            try:
                checkpoint = self._open_one(path, number, flat=is_flat(reported.role))
            except (InputRefused, NothingMatched, UsageError) as failure:
                failures.append(failure)
                continue
            usable.append(checkpoint)
            if checkpoint.fingerprint == reported.fingerprint:
                return checkpoint
        if usable:
            return usable[0]
        raise next((failure for failure in failures if not isinstance(failure, NothingMatched)), failures[0])

    def _candidates(self, path: str) -> tuple[Location, ...]:
        """Return the locations that a path in a report can mean."""
        location, folder = locate_listed(path, allow_remote=self._allow_remote), self._output.path.parent
        if isinstance(location, Url) or location.is_absolute():
            return (location,)
        beside = () if isinstance(folder, Url) and not self._allow_remote else (folder / path,)
        return tuple(dict.fromkeys((location, *beside)))

    def _open_one(self, path: Location, number: int, *, flat: bool) -> Checkpoint:
        """Open a file or folder that is no other input. The message of an error shows nothing of its content."""
        identity: object = path
        if isinstance(path, Path):
            identity = identity_of(path) if is_folder(path) else _identity_of_file(path)
        first = self._taken.setdefault(identity, number)
        if first != number:
            raise InputRefused(f"{quoted(str(path))} is the same file as input {first + 1}")
        try:
            return self._reader.open(path, flat=flat)
        except InputRefused as refused:
            raise InputRefused(
                f"{quoted(str(path))} cannot be read as a checkpoint with the options of the run",
                hint="the reason is shown by: ema-avg inspect CKPT",
            ) from refused


def _identity_of_file(path: Path) -> object:
    """Return the identity of a regular file; raise as ``open_source`` if it is none, or cannot be opened."""
    with open_source(path) as source:
        return source.identity


def failure_of(checkpoint: Checkpoint, reported: Input, output: WrittenOutput) -> str:
    """Return why nothing can be recomputed from an input; empty if it can."""
    if not output.identity.isdisjoint(checkpoint.index.identity):
        return f"{quoted(reported.path)} was overwritten by this output: nothing can be recomputed from it"
    if reported.role == Role.AVERAGE and checkpoint.fingerprint != reported.fingerprint:
        return f"{quoted(reported.path)} is no longer the previous average: nothing can be recomputed from it"
    return ""


def check_input(number: int, found: FoundInput, count: Counted, *, contents: bool) -> Check:
    """Compare an input with its description in the report; with ``contents``, also the digest of its averaged tensors.

    A reported digest takes precedence over modification times.

    Raises:
        InputChanged: the file cannot be read to its end.

    """
    name = f"input {number}"
    if found.checkpoint is None:
        return Check(name=name, ok=False, message=found.failure, hint=found.hint)
    path = quoted(str(found.checkpoint.path))
    differences = list(_differences(found, found.checkpoint, count, contents=contents))
    if differences:
        return Check(name=name, ok=False, message=f"{path} {', '.join(differences)}")
    return Check(name=name, ok=True, message=f"{path} {_state(found, found.checkpoint, contents=contents)}")


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
