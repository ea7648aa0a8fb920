"""Write files so that a name never stands for half of one.

An output is built under a random name beside its place, made durable, read back from the disk and compared, checked
by the safetensors library, and only then renamed. While the fold still runs, a second thread already makes durable
and reads back what is complete, so that little is left to do at the end. One lock per output keeps two runs apart,
and leftovers of killed runs are swept only under that lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import heapq
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.errors import OutputError, OutputLocked
from ema_cli.text import human_bytes, quoted

_SETTLE_BYTES = 1 << 25
"""What is complete is made durable in pieces of at least this size."""
_SPARE = 1.01
"""Free space asked for, relative to the size of the file."""


@contextlib.contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the output ``path``, and sweep what killed runs left beside it.

    Raises:
        OutputLocked: another run holds it.
        OutputError: the folder does not exist or is not writable.

    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = _lock(lock)
    except BlockingIOError as error:
        raise OutputLocked(f"another run is writing {quoted(str(path))}", hint="wait for it to end") from error
    except OSError as error:
        _raise_output_error(path, error)
    try:
        for leftover in path.parent.glob(f".{_escape_glob(path.name)}.*.partial"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(lock: Path) -> int:
    """Lock the file called ``lock``; try again if another run removed it in between."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _escape_glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


class OutputFile:
    """A file of known size that is filled in any order and appears under its name when it is whole."""

    def __init__(self, path: Path, header: bytes, data_bytes: int) -> None:
        self.path = path
        self.size = len(header) + data_bytes
        self.sha256 = ""
        """Digest of what was read back; known after ``finish``."""
        self._data_start = len(header)
        self._temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        self._fd = -1
        try:
            self._fd = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _reserve(self._fd, self.size)
            self._settler = _Settler(self._fd)
            self._place(0, header)
        except OSError as error:
            self.discard()
            _raise_output_error(path, error)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Place ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        try:
            self._place(self._data_start + offset, data.data)
        except OSError as error:
            _raise_output_error(self.path, error)

    def _place(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], offset + done)
        if len(view):
            self._settler.written(offset, len(view), zlib_ng.crc32(view))

    def finish(self) -> None:
        """Make the file durable and check what is on the disk, still under its temporary name.

        Raises:
            OutputError: it could not be written, or reads back differently.

        """
        try:
            self.sha256 = self._settler.finish(self.size)
            os.fsync(self._fd)
        except OSError as error:
            _raise_output_error(self.path, error)
        _check_with_library(self._temp, self.path)

    def publish(self) -> None:
        """Give the file its name and the permissions of a new file."""
        try:
            _publish(self._fd, self._temp, self.path)
        except OSError as error:
            _raise_output_error(self.path, error)
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        """Remove the temporary file; nothing happens after ``publish``."""
        if self._fd < 0:
            return
        if hasattr(self, "_settler"):
            self._settler.abandon()
        with contextlib.suppress(OSError):
            self._temp.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


class _Settler:
    """Makes durable and reads back what is complete, from front to back, in a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._pieces: list[tuple[int, int, int]] = []
        self._complete = 0
        self._ready: list[tuple[int, int, int]] = []
        self._settled = 0
        self._closing = False
        self._failure: OSError | None = None
        self._digest = hashlib.sha256()
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
        self._thread.start()

    def written(self, offset: int, length: int, crc: int) -> None:
        """Note that a piece was written; raise the failure of the other thread, if there was one."""
        with self._condition:
            if self._failure is not None:
                raise self._failure
            heapq.heappush(self._pieces, (offset, length, crc))
            while self._pieces and self._pieces[0][0] == self._complete:
                piece = heapq.heappop(self._pieces)
                self._ready.append(piece)
                self._complete += piece[1]
            if self._complete - self._settled >= _SETTLE_BYTES:
                self._condition.notify()

    def finish(self, size: int) -> str:
        """Settle the rest and return the digest of the whole file as it was read back."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._settled != size:
            raise OSError(errno.EIO, f"only {self._settled:,} of {size:,} bytes were written")
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stop, whatever is left."""
        with self._condition:
            self._ready.clear()
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while pieces := self._wait():
                self._settle(pieces)
        except OSError as failure:
            with self._condition:
                self._failure = failure

    def _wait(self) -> list[tuple[int, int, int]]:
        """Return the pieces to settle next; none at the end."""
        with self._condition:
            while not self._closing and self._complete - self._settled < _SETTLE_BYTES:
                self._condition.wait()
            pieces, self._ready = self._ready, []
            return pieces

    def _settle(self, pieces: list[tuple[int, int, int]]) -> None:
        first = pieces[0][0]
        length = sum(size for _, size, _ in pieces)
        os.fdatasync(self._fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)
        for offset, size, crc in pieces:
            data = os.pread(self._fd, size, offset)
            if len(data) != size or zlib_ng.crc32(data) != crc:
                raise OSError(errno.EIO, f"what was written at byte {offset:,} reads back differently")
            self._digest.update(data)
        with self._condition:
            self._settled += length


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole, durable, and under its name only then.

    Raises:
        OutputError: it cannot be written.

    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            _publish(descriptor, temp, path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        _raise_output_error(path, error)


def _publish(descriptor: int, temp: Path, path: Path) -> None:
    """Rename, with the permissions that a new file would have, and make the name durable."""
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(descriptor, 0o666 & ~umask)
    temp.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reserve(descriptor: int, size: int) -> None:
    """Take the space before the work: a full disk should fail in the first second, not in the last."""
    free = os.fstatvfs(descriptor)
    available = free.f_bavail * free.f_frsize
    if size * _SPARE > available:
        detail = f"{human_bytes(size)} are needed, {human_bytes(available)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {detail}")
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


def _raise_output_error(path: Path, error: OSError) -> NoReturn:
    hints = {
        errno.ENOENT: f"mkdir -p {path.parent}",
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
    }
    reason = error.strerror or str(error)
    raise OutputError(
        f"{quoted(str(path))} cannot be written: {reason}", hint=hints.get(error.errno or 0, "")
    ) from error
