"""The files of a DCP folder that are read: all are opened at once, and each must reach as far as is declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import Stored
from ema_cli.formats.dcp.window import Window
from ema_cli.formats.folder import Folder
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, shortlist

_INCOMPLETE = "was it saved or copied to the end? leave it out, or fetch it again"


class Files:
    """Opened files by name.

    Args:
        folder: where they lie.
        names: of those that are read.
        ends: how far each must reach.

    Raises:
        InputRefused: some are missing, too short, or not of this folder.

    """

    def __init__(self, folder: Folder, names: Iterable[str], ends: Mapping[str, int]) -> None:
        self._folder = folder
        self._numbers: dict[str, int] = {}
        faults = []
        for name in names:
            try:
                self._numbers[name] = folder.open(name)
            except InputRefused as refused:
                faults.append(refused.message)
            else:
                size = self.source(name).size()
                if size < ends[name]:
                    faults.append(f"is incomplete: {quoted(name)} has {size:,} bytes and should have {ends[name]:,}")
        if faults:
            raise InputRefused(shortlist(faults), hint=_INCOMPLETE)

    def number(self, name: str) -> int:
        """Return the number of a file among all that were opened in the folder."""
        return self._numbers[name]

    def source(self, name: str) -> ByteSource:
        """Return a file."""
        return self._folder.sources[self._numbers[name]]

    def window(self, stored: Stored) -> Window:
        """Return an item as a source of its own."""
        return Window(self.source(stored.file), stored.offset, stored.length)
