"""The data files of a DCP folder: all are opened at once, and each must have the declared size."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import ByteRange
from ema_cli.formats.folder import Folder
from ema_cli.formats.foreign_formats import refuse_pointer
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, shortlist

_INCOMPLETE = "copy it again, or name only the other checkpoints"
_POINTER_BYTES = 64


class Window(ByteSource):
    """The bytes ``[offset, offset + length)`` of a source, which must be that long, as a source of their own.

    Closing the source is left to its owner.
    """

    def __init__(self, source: ByteSource, offset: int, length: int) -> None:
        self.name = source.name
        self._source = source
        self._offset = offset
        self._length = length

    @property
    def identity(self) -> object:
        """The identity of the source, and the range."""
        return self._source.identity, self._offset, self._length

    @property
    def version(self) -> int:
        """The version of the source."""
        return self._source.version

    def size(self) -> int:
        """Return the length of the range."""
        return self._length

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` of the range on."""
        self._source.read_into(self._offset + offset, buffer)


class DataFiles:
    """Open files by name.

    Args:
        folder: of the files.
        sizes: the least size of each file to open, by name.

    Raises:
        InputRefused: files are missing, too short, or not in this folder.

    """

    def __init__(self, folder: Folder, sizes: Mapping[str, int]) -> None:
        self._folder = folder
        self._numbers: dict[str, int] = {}
        faults = []
        for name, least in sizes.items():
            try:
                self._numbers[name] = folder.open(name)
            except InputRefused as refused:
                faults.append(refused.message)
            else:
                size = self.source(name).size()
                if size < least:
                    refuse_pointer(self.source(name).read(0, min(size, _POINTER_BYTES)), name)
                    faults.append(f"is incomplete: {quoted(name)} has {size:,} bytes but should have {least:,}")
        if faults:
            raise InputRefused(shortlist(faults), hint=_INCOMPLETE)

    def number(self, name: str) -> int:
        """Return the number of a file among all open files of the folder."""
        return self._numbers[name]

    def source(self, name: str) -> ByteSource:
        """Return a file."""
        return self._folder.sources[self._numbers[name]]

    def window(self, stored: ByteRange) -> Window:
        """Return an item as a source."""
        return Window(self.source(stored.file), stored.offset, stored.length)
