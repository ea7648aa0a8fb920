"""An output as it lies there: one file, or the weights and the index of a folder, opened to be checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.events import Counted
from ema_cli.records.files import FileRole, is_weights
from ema_cli.report.model import File, Output
from ema_cli.storage.digest import digest_of_all, sha256_of
from ema_cli.storage.locations import Location, is_folder, names_in, open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import plural, quoted, shortlist

_MOST_FAULTS = 3


class WrittenOutput:
    """The files of an output that its size and its digest are those of, open inside the context.

    Raises:
        NothingMatched: there is no such file or folder.
        InputRefused: it cannot be opened, or holds no weights.

    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self._sources: dict[str, ByteSource] = {}
        with ExitStack() as opened:
            for name, place in _places(path).items():
                self._sources[name] = opened.enter_context(open_source(place))
            self._opened = opened.pop_all()

    @property
    def identity(self) -> frozenset[object]:
        """What tells the files from all others."""
        return frozenset(source.identity for source in self._sources.values())

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(source.size() for source in self._sources.values())

    def digests(self, on_bytes: Callable[[int], None]) -> dict[str, str]:
        """Return the SHA-256 of each file by its name; ``on_bytes`` is told how many bytes were read."""
        return {name: sha256_of(source, on_bytes) for name, source in self._sources.items()}

    def raise_if_changed(self) -> None:
        """Raise ``InputChanged`` if a file changed since it was opened."""
        for source in self._sources.values():
            source.raise_if_changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _places(path: Location) -> dict[str, Location]:
    """Return the files by name; a file alone is opened whatever it is called."""
    if not is_folder(path):
        return {path.name: path}
    try:
        places: dict[str, Location] = {name: path / name for name in sorted(names_in(path)) if is_weights(name)}
    except OSError as error:
        raise InputRefused(f"{quoted(str(path))} cannot be listed: {error.strerror}") from error
    if not places:
        raise InputRefused(f"{quoted(str(path))} is a folder without weights", hint="name an output of ema-avg")
    return places


def check_size(found: WrittenOutput, told: Output) -> Check:
    """Compare the size of an output with that in its report."""
    if found.size() == told.bytes:
        return Check(name="size", ok=True, message=plural(found.size(), "byte"))
    message = f"{plural(found.size(), 'byte')}, but {told.bytes:,} were written"
    return Check(name="size", ok=False, message=message)


def check_digest(found: WrittenOutput, told: Output, count: Counted) -> Check:
    """Compare the digest of an output with that in its report, and name the files of a folder that differ.

    Raises:
        InputChanged: it cannot be read to its end.

    """
    digests = found.digests(count.add)
    digest = digest_of_all(digests)
    if digest == told.sha256:
        return Check(name="sha256", ok=True, message=digest)
    known = {one.name: one.sha256 for one in told.files if one.role != FileRole.SIDE_FILE}
    wrong = [quoted(name) for name in sorted({*known, *digests}) if known and known.get(name) != digests.get(name)]
    where = f"; what differs is {shortlist(wrong)}" if wrong else ""
    return Check(name="sha256", ok=False, message=f"{digest}, but {quoted(told.sha256)} was written{where}")


def check_companions(folder: Location, files: Sequence[File]) -> Iterator[Check]:
    """Compare what was carried over into a folder with its report; there is no check where there is nothing of it."""
    companions = [file for file in files if file.role == FileRole.SIDE_FILE]
    wrong = [fault for fault in (_fault_of(folder / file.name, file) for file in companions) if fault]
    message = shortlist(wrong, most=_MOST_FAULTS) if wrong else f"{plural(len(companions), 'file')} as written"
    if companions:
        yield Check(name="companions", ok=not wrong, message=message)


def _fault_of(path: Location, known: File) -> str:
    """Return what is wrong with a file, empty if nothing is."""
    try:
        with open_source(path) as source:
            same = source.size() == known.bytes and sha256_of(source) == known.sha256
    except (InputRefused, NothingMatched) as error:
        return error.message
    return "" if same else f"{quoted(known.name)} was changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was verified, and what was found."""

    name: str
    """``report``, ``size``, ``sha256``, ``tensors``, ``input 1`` and so on, or ``samples``."""
    ok: bool
    message: str
    """What is there; what was expected besides, if that is something else."""
