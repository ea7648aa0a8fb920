"""A checkpoint that is a folder, while it is read: what it is called, what lies in it, what of it was opened."""

from __future__ import annotations

import errno

from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.storage.locations import Location, names_in, open_source
from ema_cli.storage.source import OF_THE_SYSTEM, ByteSource
from ema_cli.text import quoted, shortlist


class Folder:
    """A folder and the files of it that were opened, each known by its number.

    Raises:
        InputRefused: it cannot be listed.
        InputChanged: the system cannot list it, for a reason that says nothing about the folder.

    """

    def __init__(self, location: Location, sources: list[ByteSource] | None = None) -> None:
        self.location = location
        self.sources: list[ByteSource] = [] if sources is None else sources
        """Every file that was opened, also in the folders inside."""
        self.opened: set[str] = set()
        """The names of those in this folder."""
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
        """Open a file of the folder and return its number. Only names of this folder are opened, and no path.

        Raises:
            InputRefused: there is no such file, or it may not be read.

        """
        if name not in self.files:
            outside = "/" in name or "\\" in name or name in ("", ".", "..")
            why = "which is no name in this folder" if outside else "which is not there: it is incomplete"
            raise InputRefused(f"refers to the file {quoted(name)}, {why}")
        try:
            self.sources.append(open_source(self.location / name))
        except NothingMatched as missing:
            raise InputRefused(f"has lost its file {quoted(name)}") from missing
        self.opened.add(name)
        return len(self.sources) - 1

    def read(self, name: str, *, most: int) -> bytes:
        """Return the bytes of a small file, which is part of the checkpoint's structure from then on.

        Raises:
            InputRefused: there is no such file, or it has more than ``most`` bytes.

        """
        source = self.sources[self.open(name)]
        if source.size() > most:
            raise InputRefused(f"has {quoted(name)} of {source.size():,} bytes; more than {most:,} are refused")
        return source.read(0, source.size())

    def inside(self, name: str) -> Folder:
        """Return a folder in this one; what is opened there counts as opened here."""
        return Folder(self.location / name, self.sources)

    def raise_if_replaced(self) -> None:
        """Raise if a file that was opened is not there any more: those opened after it may be of another save.

        What happens later is harmless: all files are open, and all lay there together at this moment.

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
