"""A folder that is a checkpoint, while it is read: its names, and the files of it that are open."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.storage.locations import Location, names_in, open_source
from ema_cli.storage.source import OF_THE_SYSTEM, ByteSource
from ema_cli.text import quoted, shortlist


class Folder:
    """A folder and its open files, each with a number.

    Raises:
        InputRefused: it cannot be listed.
        InputChanged: the system cannot list it, for a reason unrelated to the folder.

    """

    def __init__(self, location: Location, sources: list[ByteSource] | None = None) -> None:
        self.location = location
        self.sources: list[ByteSource] = [] if sources is None else sources
        """Every file that was opened, in this folder or in one inside it, by number."""
        self.opened: dict[str, int] = {}
        """Names and numbers of the files that were opened in this folder."""
        try:
            listed = names_in(location)
        except OSError as error:
            if error.errno in (*OF_THE_SYSTEM, errno.EMFILE):
                message = f"{quoted(str(location))} cannot be listed: {error.strerror}"
                raise InputChanged(message, hint="ulimit -n 4096" if error.errno == errno.EMFILE else "") from error
            raise InputRefused(f"cannot be listed: {error.strerror}") from error
        self.files = frozenset(name for name, is_folder in listed.items() if not is_folder)
        self.folders = frozenset(name for name, is_folder in listed.items() if is_folder)

    def open(self, name: str) -> int:
        """Open a file of the folder, once, and return its number. Only names in this folder are opened, never a path.

        Raises:
            InputRefused: there is no such file, or it cannot be read.

        """
        if name not in self.files:
            outside = "/" in name or "\\" in name or name in ("", ".", "..")
            why = "which is not a name in this folder" if outside else "which is missing: the folder is incomplete"
            raise InputRefused(f"refers to the file {quoted(name)}, {why}")
        if name in self.opened:
            return self.opened[name]
        try:
            self.sources.append(open_source(self.location / name))
        except NothingMatched as missing:
            raise InputRefused(f"has lost its file {quoted(name)}") from missing
        self.opened[name] = len(self.sources) - 1
        return self.opened[name]

    def read(self, name: str, *, most: int) -> bytes:
        """Return the bytes of a small file, which then belongs to the structure of the checkpoint.

        Raises:
            InputRefused: there is no such file, or it has more than ``most`` bytes.

        """
        source = self.sources[self.open(name)]
        if source.size() > most:
            raise InputRefused(f"has {quoted(name)} of {source.size():,} bytes, more than the limit of {most:,}")
        return source.read(0, source.size())

    def inside(self, name: str) -> Folder:
        """Return a folder inside this one. Its files are numbered together with those of this folder."""
        return Folder(self.location / name, self.sources)

    def others(self, used: Sequence[str]) -> tuple[str, ...]:
        """Return the names in this folder that were not opened and are neither ``used`` nor hidden."""
        names = [*self.files, *(f"{name}/" for name in self.folders)]
        taken = {*self.opened, *used, *(f"{name}/" for name in used)}
        return tuple(sorted(name for name in names if name not in taken and not name.startswith(".")))

    def raise_if_replaced(self) -> None:
        """Raise if a file that was opened is gone by now: files opened after it may belong to another save.

        A later change is harmless: all files are open, and all of them existed together at this moment.

        Raises:
            InputChanged: naming the files.

        """
        gone = [quoted(source.name) for source in self.sources if not source.is_in_place()]
        if gone:
            message = f"{shortlist(gone)} {'was' if len(gone) == 1 else 'were'} replaced or removed while the folder "
            raise InputChanged(f"{message}was being opened", hint="run again when nothing writes to the checkpoints")

    def close(self) -> None:
        """Close every file that was opened."""
        for source in self.sources:
            source.close()
