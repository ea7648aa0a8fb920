"""An output file of known size that is filled in any order."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, Written, WrittenFile
from ema_cli.text import human_bytes, quoted
from ema_cli.write.foreign_changes import State, refuse_stranger, refuse_touched, state_of
from ema_cli.write.publish import NEW_FILE, publish, raise_output_error
from ema_cli.write.temp_names import temporary_name
from ema_cli.write.writeback import Settler

_SPARE = 1.01
"""Free space asked for, relative to the size of the file."""


class OutputFile:
    """A file of known size that is filled in any order and appears under its name when it is whole.

    Args:
        path: of the file when it is whole.
        header: what stands in front of the data section.
        data_bytes: size of the data section.
        temp: what it is called until then; a name beside ``path`` unless it is said.

    """

    def __init__(self, path: Path, header: bytes, data_bytes: int, *, temp: Path | None = None) -> None:
        self.path = path
        self.size = len(header) + data_bytes
        self._header = header
        self._temp = temporary_name(path) if temp is None else temp
        self._fd = -1
        self._settler: Settler | None = None
        self._replaces: State | None = None
        self._written: WrittenFile | None = None
        self._published = False

    def open(self) -> None:
        """Reserve the space and write the header. Arrange for ``discard`` before: a signal may come at any time.

        Raises:
            OutputError: there is no space, no permission, or an I/O error.

        """
        try:
            self._replaces = state_of(self.path)
        except OSError as error:
            raise_output_error(self.path, error)
        self.create()
        self.begin()

    def create(self) -> None:
        """Make the file and reserve its space.

        Raises:
            OutputError: there is no space, no permission, or an I/O error.

        """
        try:
            self._fd = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE)
            check_space(os.fstatvfs(self._fd), self.size)
            reserve(self._fd, self.size)
        except OSError as error:
            raise_output_error(self.path, error)

    def begin(self) -> None:
        """Write the header; open the file again, if it was closed after ``create``.

        Raises:
            OutputError: it cannot be opened or written.

        """
        try:
            if self._fd < 0:
                self._fd = os.open(self._temp, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._settler = Settler(self._fd)
            self._place(0, self._header)
        except OSError as error:
            raise_output_error(self.path, error)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Place ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        try:
            self._place(len(self._header) + offset, data.data)
        except OSError as error:
            raise_output_error(self.path, error)

    def _place(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)
        if len(view) and self._settler is not None:
            self._settler.written(offset, len(view), zlib_ng.crc32(view))

    def finish(self) -> Written:
        """Make the file durable and check what is on the disk, still under its temporary name.

        Raises:
            OutputError: it could not be written, or reads back differently.

        """
        assert self._settler is not None, "open comes first"  # noqa: S101
        try:
            sha256 = self._settler.finish(self.size)
            os.fsync(self._fd)
            modified_ns = os.fstat(self._fd).st_mtime_ns
            _check_with_library(self._temp, self.path)
        except OSError as error:
            raise_output_error(self.path, error)
        self._written = WrittenFile(
            name=self.path.name, role=FileRole.WEIGHTS, nbytes=self.size, sha256=sha256, modified_ns=modified_ns
        )
        return Written(files=(self._written,))

    def publish(self) -> None:
        """Give the file its name and the permissions of a new file.

        Raises:
            OutputError: the system refuses, or another program was at work here meanwhile.

        """
        assert self._written is not None, "finish comes first"  # noqa: S101
        try:
            refuse_touched(self._temp, self._written)
            refuse_stranger(self.path, self._replaces)
            publish(self._temp, self.path)
        except OSError as error:
            raise_output_error(self.path, error)
        self._published = True
        self.close()

    def discard(self) -> None:
        """Remove the temporary file, whatever state it is in; nothing happens after ``publish``."""
        if self._published:
            return
        if self._settler is not None:
            self._settler.abandon()
        with contextlib.suppress(OSError):
            self._temp.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file, if it is open. What was to be kept is durable by then, so a failure loses nothing."""
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


def check_space(free: os.statvfs_result, size: int) -> None:
    """Raise ``OSError`` if there is no room for ``size`` bytes on the file system of which ``free`` tells."""
    available = free.f_bavail * free.f_frsize
    if size * _SPARE > available:
        detail = f"{human_bytes(size)} are needed, {human_bytes(available)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {detail}")


def reserve(descriptor: int, size: int) -> None:
    """Take the space before the work: a full disk should fail in the first second, not in the last.

    Raises:
        OSError: there is none.

    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise
        os.truncate(descriptor, size)


def _check_with_library(temp: Path, path: Path) -> None:
    """Have the official parser read the header and the offsets; it needs no torch for that."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only at the end of a run

    try:
        with safe_open(temp, framework="numpy"):
            pass
    except SafetensorError as error:
        raise OutputError(f"{quoted(str(path))} was written, but safetensors refuses it: {error}") from error
