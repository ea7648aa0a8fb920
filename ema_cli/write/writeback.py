"""Make durable and verify what is written while the rest is still being computed, so that little is left at the end."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import threading
from collections.abc import Iterator

from zlib_ng import zlib_ng

_SETTLE_BYTES = 1 << 24
"""What is complete is made durable in runs of at least this size."""
_READ_BYTES = 1 << 18


class Settler:
    """Follows the writers of a file in a thread of its own.

    What is complete from the front on is made durable, read back from the disk, compared with what was meant by its
    CRC-32, and added to the digest of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._pieces: list[tuple[int, int, int]] = []
        """Written out of turn: offset, length and CRC-32, as a heap."""
        self._complete = 0
        """Everything before this byte was written."""
        self._crc = 0
        """Of the bytes that are complete and not settled."""
        self._settled = 0
        """Everything before this byte is durable and verified."""
        self._closing = False
        self._abandoned = False
        self._failure: BaseException | None = None
        self._digest = hashlib.sha256()
        self._buffer = bytearray(_READ_BYTES)
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
                _, length, crc = heapq.heappop(self._pieces)
                self._crc = zlib_ng.crc32_combine(self._crc, crc, length)
                self._complete += length
            if self._complete - self._settled >= _SETTLE_BYTES:
                self._condition.notify()

    def finish(self, size: int) -> str:
        """Settle the rest and return the SHA-256 of the whole file as it was read back."""
        self._close()
        if self._failure is not None:
            raise self._failure
        if self._settled != size:
            raise OSError(errno.EIO, f"only {self._settled:,} of {size:,} bytes were written")
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stop, whatever is left."""
        self._abandoned = True
        self._close()

    def _close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (run := self._wait()) is not None:
                self._settle(*run)
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that writes or waits
            with self._condition:
                self._failure = failure

    def _wait(self) -> tuple[int, int, int] | None:
        """Return the next run as its begin, end and CRC-32; ``None`` at the end."""
        with self._condition:
            while not self._closing and self._complete - self._settled < _SETTLE_BYTES:
                self._condition.wait()
            if self._abandoned or self._complete == self._settled:
                return None
            crc, self._crc = self._crc, 0
            return self._settled, self._complete, crc

    def _settle(self, begin: int, end: int, expected: int) -> None:
        os.fdatasync(self._fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_DONTNEED)
        crc = 0
        for chunk in self._read_back(begin, end):
            crc = zlib_ng.crc32(chunk, crc)
            self._digest.update(chunk)
        if crc != expected:
            raise OSError(errno.EIO, f"what was written from byte {begin:,} to {end:,} reads back differently")
        with self._condition:
            self._settled = end

    def _read_back(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield what is in the file now, in order.

        Through the page cache, from which the range was dropped: direct reads would take turns with the writers.
        """
        position = begin
        while position < end:
            chunk = memoryview(self._buffer)[: end - position]
            count = os.preadv(self._fd, [chunk], position)
            if count == 0:
                raise OSError(errno.EIO, f"the file ends at byte {position:,}")
            position += count
            yield chunk[:count]
