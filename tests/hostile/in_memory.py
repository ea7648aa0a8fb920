"""Files and folders that are only in memory, so that a fuzzer need not write the files that a parser reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ema_cli.formats.folder import Folder
from ema_cli.storage.source import ByteSource


class MemorySource(ByteSource):
    """Bytes in memory as a source."""

    def __init__(self, data: bytes, name: str = "fuzzed") -> None:
        self._data = data
        self.name = name

    @property
    def identity(self) -> object:
        """Of this object alone."""
        return id(self)

    @property
    def version(self) -> int:
        """The bytes never change."""
        return 0

    def size(self) -> int:
        """Return the number of bytes."""
        return len(self._data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the buffer; a range outside the data is a bug of the parser."""
        if offset < 0 or offset + len(buffer) > len(self._data):
            raise AssertionError(f"read of {len(buffer)} bytes at {offset} of {len(self._data)}")
        buffer[:] = self._data[offset : offset + len(buffer)]


class MemoryFolder(Folder):
    """A folder of such files; the name of a file in a folder inside has a slash."""

    def __init__(self, files: Mapping[str, bytes], sources: list[ByteSource] | None = None) -> None:
        self.location = Path("fuzzed")
        self.sources = [] if sources is None else sources
        self.opened = {}
        self.files = frozenset(name for name in files if "/" not in name)
        self.folders = frozenset(name.partition("/")[0] for name in files if "/" in name)
        self._contents = files

    def open(self, name: str) -> int:
        """Open a file as the folder on a disk does, which refuses missing files."""
        if name in self.files and name not in self.opened:
            self.sources.append(MemorySource(self._contents[name], name))
            self.opened[name] = len(self.sources) - 1
        return super().open(name)

    def inside(self, name: str) -> MemoryFolder:
        """Return a subfolder."""
        start = f"{name}/"
        inner = {path.removeprefix(start): data for path, data in self._contents.items() if path.startswith(start)}
        return MemoryFolder(inner, self.sources)
