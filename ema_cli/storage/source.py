"""Sources of bytes, read by position.

Files are read with ``preadv`` and never mapped: a mapped file that shrinks kills the process with SIGBUS, and the
whole file counts as resident memory. Only regular files are opened, so a FIFO cannot hang the program and a device
cannot be read by accident.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Self

from ema_cli.errors import EmaAvgError, InputChanged, InputRefused, NothingMatched
from ema_cli.storage.descriptor_pool import DescriptorPool
from ema_cli.storage.nearest_path import nearest_paths
from ema_cli.text import quoted

OF_THE_SYSTEM = (errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that say nothing about the file, which is never skipped because of them: the system has no room or a damaged
disk, a file server holds the file for another client or does not answer."""
_READAHEAD = 1 << 17
"""The readahead window that Linux gives a device, unless it is set."""
_DESCRIPTORS = DescriptorPool()


class ByteSource(ABC):
    """Bytes that can be read by position. Identity, version, size and reading are abstract; the rest has defaults."""

    name: str
    """The name for messages."""
    is_remote: bool = False
    """Whether every read is a request over a network, so that even small reads are worth announcing."""
    window_bytes: int = 1 << 22
    """The largest useful announcement."""
    prefetch_bytes: int = 1 << 26
    """How far ahead of the reads announcements are useful, for all sources together."""

    @property
    @abstractmethod
    def identity(self) -> object:
        """Equal for two sources of the same file, such as two names of it."""

    @property
    @abstractmethod
    def version(self) -> int:
        """A number that changes with the bytes."""

    @property
    def state(self) -> object:
        """The state of the file when it was opened; any write before would have changed it."""
        return self.identity, self.version, self.size()

    @abstractmethod
    def size(self) -> int:
        """Return the number of bytes when the source was opened."""

    @abstractmethod
    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole ``buffer`` with the bytes from ``offset`` on.

        Raises:
            InputChanged: the bytes are gone, or cannot be read.

        """

    def will_need(self, offset: int, length: int) -> None:
        """Announce that a range will be read soon."""

    def spool(self, begin: int, end: int, wanted: int) -> None:
        """Announce that ``wanted`` bytes of a range will be read, in small pieces, some of them several times."""

    def unspool(self, begin: int, end: int, count: int) -> None:
        """Announce that ``count`` of these bytes will not be read again."""

    def crc32(self, begin: int, end: int) -> int | None:  # noqa: ARG002 - used by sources that spool
        """Return the CRC-32 of a range, if the source has computed it while spooling."""
        return None

    def raise_if_changed(self) -> bool:
        """Raise ``InputChanged`` if the bytes changed since opening; return whether only the name is gone."""
        return False

    def is_in_place(self) -> bool:
        """Whether the name still refers to these bytes. Always true where a replacement is noticed otherwise."""
        return True

    def close(self) -> None:
        """Release all resources."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FileSource(ByteSource):
    """A regular local file.

    Raises:
        NothingMatched: the file does not exist.
        InputRefused: it is not a regular file, or cannot be read.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._closed = False
        try:
            with _DESCRIPTORS.borrow(self, lambda: _open(path)) as descriptor:
                self._opened = _status(descriptor, path)
            if not stat.S_ISREG(self._opened.st_mode):
                raise InputRefused(f"{quoted(self.name)} is not a regular file", hint="name a checkpoint file")
        except EmaAvgError:
            self.close()
            raise

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        return self._opened.st_dev, self._opened.st_ino

    @property
    def version(self) -> int:
        """Time of the last modification in nanoseconds, when the file was opened."""
        return self._opened.st_mtime_ns

    @property
    def state(self) -> tuple[int, ...]:
        """Identity, size and times. A write changes them; the time of the last change (ctime) cannot be put back."""
        return *self.identity, self._opened.st_size, self._opened.st_mtime_ns, self._opened.st_ctime_ns

    def size(self) -> int:
        """Return the size when the file was opened."""
        return self._opened.st_size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``, in several reads if needed: one ``preadv`` returns at most 2 GiB, and may return less."""
        view = memoryview(buffer).cast("B")
        done = 0
        with _DESCRIPTORS.borrow(self, self.open_again) as descriptor:
            while done < len(view):
                try:
                    count = os.preadv(descriptor, [view[done:]], offset + done)
                except OSError as error:
                    message = f"{quoted(self.name)} cannot be read at byte {offset + done:,}: {error.strerror}"
                    raise InputChanged(message) from error
                if count == 0:
                    raise InputChanged(
                        f"{quoted(self.name)} ends at byte {offset + done:,} but had {self.size():,} bytes when opened",
                        hint="another program is writing to it: run again when it is complete",
                    )
                done += count

    def will_need(self, offset: int, length: int) -> None:
        """Ask the kernel to read ahead, if possible, unless the end of the range is already in its cache.

        The kernel reads only the beginning of a range that is larger than the readahead window, so a range is announced
        in pieces of that size. They begin at a page, so that they have no page more.
        """
        begin, end = offset - offset % resource.getpagesize(), min(offset + length, self.size())
        with _DESCRIPTORS.borrow(self, self.open_again) as descriptor:
            if not _is_cached(descriptor, end - 1):
                step = _readahead_bytes(self._opened.st_dev)
                with contextlib.suppress(OSError, AttributeError):  # advice; not all systems take it
                    for first in range(begin, end, step):
                        os.posix_fadvise(descriptor, first, min(step, end - first), os.POSIX_FADV_WILLNEED)

    def raise_if_changed(self) -> bool:
        """Compare size and modification time. A file that was replaced or removed can still be read completely."""
        with _DESCRIPTORS.borrow(self, self.open_again) as descriptor:
            now, then = _status(descriptor, self.path), self._opened
        renamed = not self.is_in_place()
        # A write changes ctime, even if the modification time is put back; so does losing the name.
        touched = now.st_ctime_ns != then.st_ctime_ns and not renamed
        if touched or (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise InputChanged(
                f"{quoted(self.name)} was changed while it was being read",
                hint="run again when nothing writes to the checkpoints",
            )
        return renamed

    def is_in_place(self) -> bool:
        """Whether the name still refers to this file."""
        try:
            named = self.path.stat()
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == self.identity

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        _DESCRIPTORS.close(self)

    def open_again(self) -> int:
        """Open the file again and return the descriptor; it must be the same file.

        Raises:
            InputChanged: the name refers to another file now, or to none.

        """
        if self._closed:
            raise InputChanged(f"{quoted(self.name)} was closed")
        try:
            descriptor = _open(self.path)
        except (NothingMatched, InputRefused) as error:
            raise InputChanged(f"{quoted(self.name)} was removed while it was being read") from error
        try:
            status = _status(descriptor, self.path)
            if (status.st_dev, status.st_ino) != self.identity:
                raise InputChanged(f"{quoted(self.name)} was replaced while it was being read")
        except InputChanged:
            os.close(descriptor)
            raise
        return descriptor


def open_together(sources: Sequence[FileSource]) -> AbstractContextManager[list[int]]:
    """Lend the descriptors of the first files: of as many as can be open at the same time, at least one.

    Raises:
        InputChanged: a file was removed or replaced, or the system has no descriptor left.

    """
    return _DESCRIPTORS.borrow_several([(source, source.open_again) for source in sources])


def _status(descriptor: int, path: Path) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise InputChanged(f"{quoted(str(path))} cannot be examined: {error.strerror}") from error


@cache
def _readahead_bytes(device: int) -> int:
    """Return the readahead window of a device, or of the disk it is a part of; the usual one if it is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for path in (f"/sys/class/bdi/{number}/read_ahead_kb", f"/sys/dev/block/{number}/../queue/read_ahead_kb"):
        with contextlib.suppress(OSError, ValueError):
            return max(_READAHEAD, int(Path(path).read_text(encoding="ascii")) << 10)
    return _READAHEAD


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte can be read without waiting. Much cheaper than announcing a range that is in the cache."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # it would have to wait; or the system does not support the question
        return False


def _open(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        weighted = re.search(r":[\d.]+$", str(path))
        hint = "CKPT:WEIGHT goes with --method manual" if weighted else partial(nearest_paths, path)
        raise NothingMatched(f"there is no {quoted(str(path))}", hint=hint) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            raise InputChanged(f"{quoted(str(path))} cannot be opened: {error.strerror}") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputRefused(f"{quoted(str(path))} cannot be opened: {reason}") from error
