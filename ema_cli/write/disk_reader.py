"""Read back from the disk what was written, past the page cache, which would return it even if the disk had lost it."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

_ALIGNMENT = 1 << 12
"""Direct reads begin at a multiple of it: the largest block of a disk."""


class DiskReader:
    """Direct reads of a file that is durable (open(2), ``O_DIRECT``).

    On file systems without them, such as tmpfs, the range is dropped from the page cache first, as far as the system
    allows.

    Args:
        descriptor: of the file, open for reading.
        path: of the file.
        most: bytes of a read.

    """

    def __init__(self, descriptor: int, path: Path, most: int) -> None:
        self._fd = descriptor
        self._path = path
        self._buffer = mmap.mmap(-1, most + 2 * _ALIGNMENT)  # begins at a page

    def read(self, position: int, length: int) -> memoryview:
        """Return the bytes on the disk, fewer if the file ends before; valid until the next call.

        Raises:
            OSError: they cannot be read.

        """
        before = position % _ALIGNMENT
        wanted = before + length
        rounded = memoryview(self._buffer)[: wanted + -wanted % _ALIGNMENT]
        count = self._fill(position - before, rounded)
        return rounded[before : min(count, wanted)]

    def _fill(self, position: int, buffer: memoryview) -> int:
        with contextlib.suppress(OSError, AttributeError):  # some systems and file systems refuse it
            direct = os.open(self._path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return _read_all(direct, position, buffer)
            finally:
                os.close(direct)
        with contextlib.suppress(OSError, AttributeError):  # advice; not all systems take it
            os.posix_fadvise(self._fd, position, len(buffer), os.POSIX_FADV_DONTNEED)
        return _read_all(self._fd, position, buffer)


def _read_all(descriptor: int, position: int, buffer: memoryview) -> int:
    """Return how many bytes the file has there, at most the length of the buffer."""
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], position + done)):
        done += count
        if count % _ALIGNMENT:
            break  # the end of the file; a direct read could not go on from there
    return done
