"""A small file, such as a report, that is written whole."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path

from ema_cli.write.held_file import hold, remove_abandoned
from ema_cli.write.parent_folders import ParentFolders
from ema_cli.write.permissions import Permissions, mode_of_new_file
from ema_cli.write.publish import Writing, publish
from ema_cli.write.temp_names import temporary_name

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class SmallFile:
    """A file that is written whole and published later; see ``SmallTarget``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parents = ParentFolders(path)
        self._temp: Path | None = None
        self._fd = -1
        """Open until the file is published or discarded: it holds the lock of the temporary file."""
        self._stays = False

    def write(self, *pieces: bytes) -> None:
        """Write the file durably under a temporary name, in folders that may be new; remove what killed runs left."""
        with Writing(self._path):
            remove_abandoned(self._path)
            original = Permissions.of(self._path)
            self._make(mode_of_new_file(original))
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._fd, view) :]
            if original is not None:
                original.set_on(self._fd)
            os.fsync(self._fd)

    def _make(self, mode: int) -> None:
        """Make the temporary file; try again if another run took it for a leftover, before it was locked."""
        while True:
            self._temp = temporary_name(self._path)
            self._fd = self._parents.creating(partial(os.open, self._temp, _FLAGS, mode))
            if hold(self._fd, self._temp):
                return
            self._close()

    def publish(self) -> None:
        """Give the file its name."""
        assert self._temp is not None, "write comes first"  # noqa: S101
        with Writing(self._path):
            publish(self._temp, self._path)
        self.keep()
        self._close()

    def keep(self) -> None:
        """Let ``discard`` leave the file, under the name that it has."""
        self._stays = True

    def discard(self) -> None:
        """Close and remove the file; do not remove it after ``publish`` or ``keep``."""
        if self._temp is not None and not self._stays:
            with contextlib.suppress(OSError):  # the next run removes it
                self._temp.unlink(missing_ok=True)
        self._close()
        if not self._stays:
            self._parents.remove()

    def _close(self) -> None:
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            with contextlib.suppress(OSError):  # the bytes are durable, or not wanted
                os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file durably; it has its name only when it is complete.

    Raises:
        OutputError: it cannot be written.

    """
    file = SmallFile(path)
    try:
        file.write(data)
        file.publish()
    finally:
        file.discard()
