"""An output file of known size that is filled in any order."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from zlib_ng import zlib_ng

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, Written, WrittenFile
from ema_cli.text import human_bytes, quoted
from ema_cli.write.permissions import Permissions, mode_of_new_file
from ema_cli.write.publish import (
    FileState,
    Writing,
    publish,
    refuse_changed,
    refuse_foreign,
    state_of,
)
from ema_cli.write.temp_names import temporary_name
from ema_cli.write.writeback import WriteBack

_SPARE = 1.01
"""Free space that must be available, relative to the size of the file."""


class OutputFile:
    """A file of known size that is filled in any order; see ``Target``.

    Args:
        path: of the complete file.
        header: the bytes before the data section.
        data_bytes: size of the data section.
        temp: path of the file until it is published; a random name beside ``path`` by default.
        role: of the file; weights are checked by the safetensors library.
        most: the permissions that it may have at most if nothing of its name is replaced.
        read_back_whole: compare the whole file with the disk, not a sample.

    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        data_bytes: int,
        *,
        temp: Path | None = None,
        role: FileRole = FileRole.WEIGHTS,
        most: Permissions | None = None,
        read_back_whole: bool = False,
    ) -> None:
        self.path = path
        self.size = len(header) + data_bytes
        self._header = header
        self._temp = self._temporary_name() if temp is None else temp
        self._role = role
        self._read_back_whole = read_back_whole
        self.most = most
        self._name = path.name
        """In the description of the written file."""
        self._follows = True
        """Whether the file is written back while it is written."""
        self._fd = -1
        self._reserved = False
        self._write_back: WriteBack | None = None
        self._before: FileState | None = None
        """The state of ``path`` when the file was opened."""
        self._written: WrittenFile | None = None
        self._published = False

    @property
    def temp(self) -> Path:
        """The path of the file until it is published."""
        return self._temp

    def _temporary_name(self) -> Path:
        return temporary_name(self.path)

    def reserve(self) -> None:
        """Create the file and take its space, without keeping it open until ``open``."""
        self._create()
        self._reserved = True
        self.close()

    def open(self) -> None:
        """Create the file unless it was reserved, and write its header."""
        with Writing(self.path):
            self._before = state_of(self.path)
            if self._reserved:
                self._fd = os.open(self._temp, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            else:
                self._create()
            self._begin_write_back()

    def _begin_write_back(self) -> None:
        self._write_back = WriteBack(
            self._fd, self._temp, self.size, whole=self._read_back_whole, follows=self._follows
        )
        self._write_all(0, self._header)

    def _create(self) -> None:
        with Writing(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._temp, flags, mode_of_new_file(self._permissions()))
            check_space(os.fstatvfs(self._fd), self.size)
            self._take_space()

    def _take_space(self) -> None:
        """Give the new file its size."""
        reserve_space(self._fd, self.size)

    def _permissions(self) -> Permissions | None:
        """Return the permissions to keep; ``None`` for those of any new file."""
        return Permissions.of(self.path) or self.most

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section, unless bytes written earlier read back differently."""
        with Writing(self.path):
            self._write_all(len(self._header) + offset, data)

    def _write_all(self, offset: int, data: bytes | memoryview) -> None:
        write_at(self._fd, offset, data)
        if data:
            self._count(offset, len(data), zlib_ng.crc32(data))

    def _count(self, offset: int, length: int, crc: int) -> None:
        """Count ``length`` bytes at byte ``offset`` of the file, which have this CRC-32, as written."""
        if self._write_back is not None:
            self._write_back.add(offset, length, crc)

    def finish(self) -> Written:
        """Make the file durable, verify the bytes on the disk, and close it; it keeps its temporary name."""
        assert self._write_back is not None, "open comes first"  # noqa: S101
        with Writing(self.path):
            sha256 = self._write_back.finish()
        return Written(files=(self._conclude(sha256),))

    def _conclude(self, sha256: str) -> WrittenFile:
        """Check and close the file, whose bytes are durable and verified; return its description."""
        with Writing(self.path):
            if self._is_safetensors():
                _check_with_library(self._temp, self.path)
            self.set_permissions(self._fd)
            os.fsync(self._fd)
            modified_ns = os.fstat(self._fd).st_mtime_ns
        self.close()
        self._written = WrittenFile(
            name=self._name, role=self._role, nbytes=self.size, sha256=sha256, modified_ns=modified_ns
        )
        return self._written

    def set_permissions(self, descriptor: int) -> None:
        """Give the open file the permissions of what it replaces."""
        if (permissions := self._permissions()) is not None:
            permissions.set_on(descriptor)

    def _is_safetensors(self) -> bool:
        return self._role is FileRole.WEIGHTS

    def publish(self) -> None:
        """Give the file its name, unless another program changed the file or put one in its place."""
        assert self._written is not None, "finish comes first"  # noqa: S101
        with Writing(self.path):
            refuse_changed(self._temp, self._written)
            refuse_foreign(self.path, self._before)
            publish(self._temp, self.path)
        self._published = True

    def discard(self) -> None:
        """Remove the temporary file in any state; does nothing after ``publish``."""
        if self._published:
            return
        self._stop()
        with contextlib.suppress(OSError):
            self._temp.unlink(missing_ok=True)

    def _stop(self) -> None:
        if self._write_back is not None:
            self._write_back.abandon()
        self.close()

    def close(self) -> None:
        """Close the file if it is open. A failure loses nothing: bytes to be kept are durable by then."""
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


def write_at(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at byte ``offset`` of a file.

    Raises:
        OSError: the system refuses.

    """
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        offset, view = offset + count, view[count:]


def check_space(free: os.statvfs_result, size: int) -> None:
    """Raise ``OSError`` if the file system with the statistics ``free`` has no room for ``size`` bytes."""
    available = free.f_bavail * free.f_frsize
    if size * _SPARE > available:
        detail = f"{human_bytes(size)} are needed, {human_bytes(available)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {detail}")


def reserve_space(descriptor: int, size: int) -> None:
    """Take the space before the work, so that a full disk fails in the first second and not in the last.

    Raises:
        OSError: there is not enough space.

    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise
        os.truncate(descriptor, size)


def _check_with_library(temp: Path, path: Path) -> None:
    """Let the official parser check the header and the offsets; it needs no torch for that."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only at the end of a run

    try:
        with safe_open(temp, framework="numpy"):
            pass
    except SafetensorError as error:
        raise OutputError(f"{quoted(str(path))} was written, but safetensors refuses it: {error}") from error
