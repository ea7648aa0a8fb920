"""A range of a file as a source of its own: an archive that lies inside a larger file."""

from __future__ import annotations

from ema_cli.storage.source import ByteSource


class Window(ByteSource):
    """The bytes ``[offset, offset + length)`` of a source that reaches so far, and stays its owner's to close."""

    def __init__(self, source: ByteSource, offset: int, length: int) -> None:
        self.name = source.name
        self._source = source
        self._offset = offset
        self._length = length

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
