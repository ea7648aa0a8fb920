"""The files of an output, opened to be checked: one file, or the weights and the index of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.events import Counted
from ema_cli.records.files import FileRole, is_weights
from ema_cli.report.beside import report_path
from ema_cli.report.model import File, Output
from ema_cli.storage.digest import digest_of_all, sha256_of
from ema_cli.storage.locations import Location, is_folder, names_in, open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import plural, quoted, shortlist

_MOST_FAULTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a verification, with its result."""

    name: str
    """``report``, ``size``, ``sha256``, ``companions``, ``tensors``, ``method``, ``input 1`` and so on, ``samples``."""
    ok: bool
    message: str
    """What was found; if the check failed, also what was expected."""
    hint: str = ""
    """What may help if the check failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOutput:
    """The open files that count for the size and the digest of an output."""

    path: Location
    sources: Mapping[str, ByteSource]
    """By file name."""

    @property
    def identity(self) -> frozenset[object]:
        """Identities of the files, to recognize them among the inputs."""
        return frozenset(source.identity for source in self.sources.values())

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(source.size() for source in self.sources.values())

    def is_newer_than(self, path: Location) -> bool:
        """Return whether a local output was modified after the local file ``path``."""
        try:
            modified_ns = path.stat().st_mtime_ns if isinstance(path, Path) else None
        except OSError:
            return False
        return modified_ns is not None and max(source.version for source in self.sources.values()) > modified_ns


def open_written(path: Location, opened: ExitStack) -> WrittenOutput:
    """Open an output until ``opened`` is closed: a file of any name, or the weights and the index in a folder.

    Raises:
        NothingMatched: there is no such file or folder.
        InputRefused: the output cannot be opened, or has no weights.

    """
    files: dict[str, Location] = {path.name: path}
    if is_folder(path):
        try:
            files = {name: path / name for name in sorted(names_in(path)) if is_weights(name)}
        except OSError as error:
            raise InputRefused(f"{quoted(str(path))} cannot be listed: {error.strerror}") from error
    if not files:
        raise InputRefused(f"{quoted(str(path))} is a folder without weights", hint="name an output of ema-avg")
    sources = {name: opened.enter_context(open_source(location)) for name, location in files.items()}
    return WrittenOutput(path=path, sources=sources)


def check_size(output: WrittenOutput, reported: Output) -> Check:
    """Compare the size of an output with its report."""
    same = output.nbytes == reported.bytes
    message = plural(output.nbytes, "byte") + ("" if same else f", but {reported.bytes:,} were written")
    return Check(name="size", ok=same, message=message)


def check_digest(output: WrittenOutput, reported: Output, count: Counted) -> Check:
    """Compare the digest of an output with its report; in a folder, name the files that differ.

    Raises:
        InputChanged: a file cannot be read to its end.

    """
    digests = {name: sha256_of(source, count.add) for name, source in output.sources.items()}
    digest = digest_of_all(digests)
    if digest == reported.sha256:
        return Check(name="sha256", ok=True, message=digest)
    expected = {file.name: file.sha256 for file in reported.files if file.role != FileRole.SIDE_FILE}
    names = sorted({*expected, *digests}) if expected else ()
    changed = [quoted(name) for name in names if expected.get(name) != digests.get(name)]
    where = f"; files that differ: {shortlist(changed)}" if changed else ""
    if output.is_newer_than(report_path(output.path)):
        where += f"; {quoted(output.path.name)} is newer than its report: changed, or of a run that wrote no report"
    return Check(name="sha256", ok=False, message=f"{digest}, but {quoted(reported.sha256)} was written{where}")


def check_side_files(folder: Location, files: Sequence[File]) -> Iterator[Check]:
    """Compare the side files in a folder with its report; no check if there are none."""
    side_files = [file for file in files if file.role == FileRole.SIDE_FILE]
    faults = [fault for fault in (_fault_of(folder / file.name, file) for file in side_files) if fault]
    message = shortlist(faults, most=_MOST_FAULTS) if faults else f"{plural(len(side_files), 'file')} unchanged"
    if side_files:
        yield Check(name="companions", ok=not faults, message=message)


def _fault_of(path: Location, reported: File) -> str:
    """Return how a file differs from the report; empty if it is unchanged."""
    try:
        with open_source(path) as source:
            same = source.size() == reported.bytes and sha256_of(source) == reported.sha256
    except (InputRefused, NothingMatched) as error:
        return error.message
    return "" if same else f"{quoted(reported.name)} was changed"
