"""A range of a file as a source of its own: an archive that lies inside a larger file."""

from __future__ import annotations

from ema_cli.errors import InputRefused
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted


class Window(ByteSource):
    """The bytes ``[offset, offset + length)`` of a source, which stays its owner's to close.

    Raises:
        InputRefused: the source ends before the range does.

    """

    def __init__(self, source: ByteSource, offset: int, length: int) -> None:
        self.name = source.name
        self._source = source
        self._offset = offset
        self._length = length
        if offset + length > source.size():
            raise InputRefused(
                f"is incomplete: it should reach to byte {offset + length:,} of {quoted(source.name)}, "
                f"which has {source.size():,}",
                hint="was it saved or copied to the end? leave it out, or fetch it again",
            )

    @property
    def identity(self) -> object:
        """That of the source, and the range."""
        return self._source.identity, self._offset, self._length

    @property
    def version(self) -> int:
        """That of the source."""
        return self._source.version

    def size(self) -> int:
        """Return the length of the range."""
        return self._length

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` from ``offset`` in the range on."""
        self._source.read_into(self._offset + offset, buffer)
