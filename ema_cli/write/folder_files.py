"""The files of an output folder, on a disk or in a store: shards of the data section, and side files."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from ema_cli.errors import InputChanged
from ema_cli.records.files import FileRole, PlannedFile, SideFile, Written, WrittenFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted
from ema_cli.write.target import Target

File = TypeVar("File", bound=Target)
_PIECE_BYTES = 1 << 20


class FolderFiles(ABC, Generic[File]):
    """The files of one folder. The data sections of its shards, in order, are the data section of the output.

    A folder may have more files than a process may have open. Pieces arrive roughly in order, so few shards are being
    filled at a time: each is opened for its first piece, and the thread that writes its last piece finishes it.
    """

    def __init__(self, output: PlannedOutput) -> None:
        self._output = output
        self._begins = [planned.begin for planned in output.files]
        self._files: list[File] = []
        """The shards, and at the end the side files."""
        self._shards = [
            Shard(self._add(planned, FileRole.WEIGHTS), self._missing_bytes(planned)) for planned in output.files
        ]

    @abstractmethod
    def _make_file(self, planned: PlannedFile, role: FileRole) -> File:
        """Return the target of one file."""

    def _missing_bytes(self, planned: PlannedFile) -> int:
        """Return how many bytes of the data section of a shard this process writes."""
        return planned.data_bytes

    def _add(self, planned: PlannedFile, role: FileRole) -> File:
        file = self._make_file(planned, role)
        self._files.append(file)
        return file

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section of all shards; safe to call from several threads."""
        while data:
            number = bisect_right(self._begins, offset) - 1
            within = offset - self._begins[number]
            part = data[: self._output.files[number].data_bytes - within]
            self._shards[number].write(within, part)
            offset, data = offset + len(part), data[len(part) :]

    def finish(self) -> Written:
        """Finish the shards, and write the side files.

        Raises:
            OutputError: a file could not be written, or a shard is incomplete.
            InputChanged: a side file to copy was changed or removed.

        """
        files = self._finish_weights()
        files += [self._write_side_file(side) for side in self._output.beside]
        return Written(files=tuple(sorted(files, key=lambda file: file.name)), folder=True)

    def _finish_weights(self) -> list[WrittenFile]:
        return [file for shard in self._shards for file in shard.finish()]

    def _write_side_file(self, side: SideFile) -> WrittenFile:
        file = self._add(PlannedFile(name=side.name, header=b"", begin=0, data_bytes=side.nbytes), side.role)
        file.open()
        offset = 0
        for piece in pieces_of(side):
            file.write(offset, memoryview(piece))
            offset += len(piece)
        (written,) = file.finish().files
        return written

    def discard(self) -> None:
        """Remove all files that were not published."""
        for file in self._files:
            file.discard()


class Shard(Generic[File]):
    """A file of the weights, opened for its first piece and finished after its last.

    Args:
        file: the target.
        data_bytes: that are written into it.

    """

    def __init__(self, file: File, data_bytes: int) -> None:
        self.file = file
        self._missing = data_bytes
        self._is_open = False
        self._written: Sequence[WrittenFile] | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Open the file, unless it is open."""
        with self._lock:
            if not self._is_open:
                self.file.open()
                self._is_open = True

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section of the file."""
        self.open()
        self.file.write(offset, data)
        self.count(len(data))

    def count(self, length: int) -> None:
        """Count bytes that were written, and finish the file if they are the last."""
        with self._lock:
            self._missing -= length
            is_complete = self._missing == 0
        if is_complete:
            self._written = self.file.finish().files

    def finish(self) -> Sequence[WrittenFile]:
        """Return the finished file. A shard without data is finished here; a shard with a gap raises here.

        A shard that other processes write, too, is finished in part, and not returned.
        """
        if self._written is None:
            self.open()
            self._written = self.file.finish().files
        return self._written


def pieces_of(side: SideFile) -> Iterator[bytes]:
    """Yield the contents of a side file.

    Raises:
        InputChanged: the file to copy was changed or removed.

    """
    if side.source is None:
        yield side.content or b""
        return
    with open_unchanged(side) as source:
        for offset in range(0, source.size(), _PIECE_BYTES):
            yield source.read(offset, min(_PIECE_BYTES, source.size() - offset))
        source.raise_if_changed()


def open_unchanged(side: SideFile) -> ByteSource:
    """Open the file that a side file is a copy of.

    Raises:
        InputChanged: it was changed or removed since the copy was planned.

    """
    assert side.source is not None, "the file is copied"  # noqa: S101
    source = open_source(side.source)
    if source.state != side.state:
        source.close()
        raise InputChanged(
            f"{quoted(source.name)} was changed or replaced during the run",
            hint="run again when nothing writes to the checkpoints",
        )
    return source
