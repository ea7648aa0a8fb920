"""Sources of bytes, read by position.

Files are read with ``preadv`` and never mapped: a mapped file that shrinks kills the process with SIGBUS, and shows
up whole in the resident memory. Only regular files are opened, so a FIFO cannot hang the program and a device
cannot be read by accident.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from ema_cli.errors import EmaAvgError, InputChanged, InputRefused, NothingMatched
from ema_cli.storage.descriptor_pool import Descriptors
from ema_cli.text import quoted

OF_THE_SYSTEM = (errno.ENFILE, errno.ENOMEM, errno.EIO)
"""Errors that say nothing about the file: a folder's file is never left out because of them."""
_DESCRIPTORS = Descriptors()


class ByteSource(ABC):
    """Bytes that can be read by position: three things to implement, the rest has a harmless default."""

    name: str
    """What messages call it."""
    far: bool = False
    """Whether every read is a journey: then small ones are worth announcing too."""
    window_bytes: int = 1 << 22
    """Size of one announcement, at most."""
    ahead_bytes: int = 1 << 26
    """How far ahead it pays to announce what will be read, all sources together."""

    @property
    @abstractmethod
    def identity(self) -> object:
        """Equal for two sources of the same bytes in the same place, such as two names of one file."""

    @property
    @abstractmethod
    def version(self) -> int:
        """A number that changes when the bytes do."""

    @property
    def state(self) -> object:
        """What was so when the source was opened, and would not be if anything had touched the bytes before."""
        return self.identity, self.version, self.size()

    @abstractmethod
    def size(self) -> int:
        """Return the number of bytes, fixed when the source was opened."""

    @abstractmethod
    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole ``buffer`` with the bytes from ``offset`` on.

        Raises:
            InputChanged: the bytes are not there any more, or cannot be read.

        """

    def will_need(self, offset: int, length: int) -> None:
        """Announce that a range will be read soon."""

    def keep(self, begin: int, end: int, wanted: int) -> None:
        """Announce that ``wanted`` bytes out of a range will be read, in small pieces, some of them several times."""

    def deliver(self, begin: int, end: int, count: int) -> None:
        """Announce that so many of them will not be read again."""

    def crc32(self, begin: int, end: int) -> int | None:  # noqa: ARG002 - of those that keep ranges
        """Return the CRC-32 of a range, where the source has found it on the way."""
        return None

    def raise_if_changed(self) -> bool:
        """Raise ``InputChanged`` if the bytes changed since opening; return whether only the name was taken away."""
        return False

    def is_in_place(self) -> bool:
        """Whether the name still means these bytes; where it cannot mean others unnoticed, that is not asked."""
        return True

    def close(self) -> None:
        """Release what the source holds."""

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
        NothingMatched: there is no such file.
        InputRefused: it is not a regular file, or may not be read.

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
        """Time of the last modification, in nanoseconds, when the file was opened."""
        return self._opened.st_mtime_ns

    @property
    def state(self) -> tuple[int, ...]:
        """All that a write would change, the time of the last change of any kind among it, which cannot be put back."""
        return *self.identity, self._opened.st_size, self._opened.st_mtime_ns, self._opened.st_ctime_ns

    def size(self) -> int:
        """Return the size when the file was opened."""
        return self._opened.st_size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``; a single ``preadv`` may return less than asked, and at most 2 GiB."""
        view = memoryview(buffer).cast("B")
        done = 0
        with self._descriptor() as descriptor:
            while done < len(view):
                try:
                    count = os.preadv(descriptor, [view[done:]], offset + done)
                except OSError as error:
                    place = f"{quoted(self.name)} cannot be read at byte {offset + done:,}"
                    raise InputChanged(f"{place}: {error.strerror}") from error
                if count == 0:
                    raise InputChanged(
                        f"{quoted(self.name)} ends at byte {offset + done:,}, but had {self.size():,} when opened",
                        hint="something is writing to it: run again when it is complete",
                    )
                done += count

    def will_need(self, offset: int, length: int) -> None:
        """Ask the kernel to read ahead, where it can be asked, unless the end of the range is in its cache already."""
        with self._descriptor() as descriptor:
            if hasattr(os, "posix_fadvise") and not _is_cached(descriptor, offset + length - 1):
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def raise_if_changed(self) -> bool:
        """Compare size and modification time; a file that was replaced or removed is still whole behind the name."""
        with self._descriptor() as descriptor:
            now, then = _status(descriptor, self.path), self._opened
        renamed = not self.is_in_place()
        # A write leaves its mark in ctime even if the modification time is put back; so does losing the name.
        touched = now.st_ctime_ns != then.st_ctime_ns and not renamed
        if touched or (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise InputChanged(
                f"{quoted(self.name)} was changed while it was being read",
                hint="run again when nothing writes to the checkpoints",
            )
        return renamed

    def is_in_place(self) -> bool:
        """Whether the name still means this file."""
        try:
            named = self.path.stat()
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == self.identity

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        _DESCRIPTORS.close(self)

    def _descriptor(self) -> AbstractContextManager[int]:
        return _DESCRIPTORS.borrow(self, self._open_again)

    def _open_again(self) -> int:
        """Open the file once more; it must be the one that it was.

        Raises:
            InputChanged: the name means another file now, or none.

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


def _status(descriptor: int, path: Path) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise InputChanged(f"{quoted(str(path))} cannot be looked at: {error.strerror}") from error


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte can be read without waiting: far cheaper to ask than to announce a range that is there."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # it would have to wait; or this system cannot tell
        return False


def _open(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        hint = "CKPT:WEIGHT goes with --method manual" if re.search(r":[\d.]+$", str(path)) else ""
        raise NothingMatched(f"there is no {quoted(str(path))}", hint=hint) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            raise InputChanged(f"{quoted(str(path))} cannot be opened: {error.strerror}") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputRefused(f"{quoted(str(path))} cannot be opened: {reason}") from error
