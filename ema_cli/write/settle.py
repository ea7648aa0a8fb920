"""Make durable and verify what is written while the rest is still being computed, so that little is left at the end."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import threading

from zlib_ng import zlib_ng

_SETTLE_BYTES = 1 << 25
"""What is complete is made durable in pieces of at least this size."""


class Settler:
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
