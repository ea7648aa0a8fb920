"""A small file, such as a report, that is written whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ema_cli.write.permissions import Permissions, mode_of_new_file
from ema_cli.write.publish import Writing, publish
from ema_cli.write.temp_names import temporary_name


class SmallFile:
    """A file that is written whole and published later; see ``SmallTarget``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temp = temporary_name(path)
        self._published = False

    def write(self, data: bytes) -> None:
        """Write the file durably under a temporary name."""
        with Writing(self._path):
            original = Permissions.of(self._path)
            mode = mode_of_new_file(original)
            with open(self._temp, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(data)
                file.flush()
                if original is not None:
                    original.set_on(file.fileno())
                os.fsync(file.fileno())

    def publish(self) -> None:
        """Give the file its name."""
        with Writing(self._path):
            publish(self._temp, self._path)
        self._published = True

    def discard(self) -> None:
        """Remove the file; does nothing after ``publish``."""
        if self._published:
            return
        with contextlib.suppress(OSError):  # the next run removes it
            self._temp.unlink(missing_ok=True)


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
