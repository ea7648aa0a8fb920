"""A small file, such as a report, that is written whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ema_cli.write.publish import NEW_FILE, publish, raise_output_error
from ema_cli.write.temp_names import temporary_name


class SmallFile:
    """A file that is written whole and published later.

    Args:
        path: of the file when it is published.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temp = temporary_name(path)
        self._published = False

    def write(self, data: bytes) -> None:
        """Write the file durably under a temporary name. Arrange for ``discard`` first.

        Raises:
            OutputError: it cannot be written.

        """
        try:
            descriptor = os.open(
                self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise_output_error(self._path, error)

    def publish(self) -> None:
        """Give the file its name.

        Raises:
            OutputError: the system refuses.

        """
        try:
            publish(self._temp, self._path)
        except OSError as error:
            raise_output_error(self._path, error)
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
