"""One of the safetensors files of a folder: open from the first piece that is written to it to the last."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ema_cli.records.files import PlannedFile, WrittenFile
from ema_cli.write.file import OutputFile


class ShardFile:
    """A file whose space is taken at once, but which is open only while it is filled.

    A folder may have more files than a process may have open. Pieces come about in order, so few files are being
    filled at a time; the thread that brings the last piece of one makes it durable and closes it.

    Args:
        planned: what is to be written.
        path: of the file when the folder is whole.
        temp: what it is called until then.

    """

    def __init__(self, planned: PlannedFile, path: Path, temp: Path) -> None:
        self._file = OutputFile(path, planned.header, planned.data_bytes, temp=temp)
        self._missing = planned.data_bytes
        self._begun = False
        self._written: WrittenFile | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Take the space."""
        self._file.create()
        self._file.close()

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Place ``data`` at byte ``offset`` of the file's data section."""
        self._begin()
        self._file.write(offset, data)
        with self._lock:
            self._missing -= len(data)
            whole = self._missing == 0
        if whole:
            self._complete()

    def _begin(self) -> None:
        with self._lock:
            if not self._begun:
                self._file.begin()
                self._begun = True

    def _complete(self) -> None:
        (self._written,) = self._file.finish().files
        self._file.close()

    def finish(self) -> WrittenFile:
        """Return what was written; a file without data is complete only now, and one with a gap never is."""
        if self._written is None:
            self._begin()
            self._complete()
        assert self._written is not None  # noqa: S101 - for the type checker
        return self._written

    def discard(self) -> None:
        """Remove the file."""
        self._file.discard()
