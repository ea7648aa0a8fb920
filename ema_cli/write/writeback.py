"""Write back and verify a file while the rest is still being computed, so that little is left to do at the end."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from zlib_ng import zlib_ng

from ema_cli.write.disk_reader import DiskReader

_RUN_BYTES = 1 << 24
"""Complete bytes are written back in runs of at least this size."""
_PIECE_BYTES = 1 << 20
_SAMPLED = 16
"""The first of so many pieces is read from the disk, and the last of the file."""


class WriteBack:
    """Follows the writers of a file in its own thread.

    The complete bytes from the start of the file are made durable. What the system keeps of them is compared by CRC-32
    with the bytes that were written, and added to the digest of the file; what the disk returns is compared with that,
    for a sample of 1/16 or for the whole file.

    Args:
        descriptor: of the file, open for reading and writing.
        path: of the file.
        end: the byte after the last that is written.
        whole: compare the whole file with the disk.
        follows: work while the file is written; otherwise everything is done at the end, by the thread that waits for
            it, which takes no memory before.
        begin: the first byte that is followed, if others write what is before it; there is no digest then.

    """

    def __init__(
        self, descriptor: int, path: Path, end: int, *, whole: bool = False, follows: bool = True, begin: int = 0
    ) -> None:
        self._fd = descriptor
        self._path = path
        self._end = end
        self._whole = whole
        self._pieces: list[tuple[int, int, int]] = []
        """Pieces written before their turn, as a heap: offset, length and CRC-32."""
        self._complete = begin
        """Everything before this byte was written."""
        self._crc = 0
        """Of the bytes that are complete and not verified."""
        self._verified = begin
        """Everything before this byte is durable and verified."""
        self._closing = False
        self._abandoned = False
        self._failure: BaseException | None = None
        self._digest = hashlib.sha256()
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="write-back", daemon=True) if follows else None
        if self._thread is not None:
            self._thread.start()

    def add(self, offset: int, length: int, crc: int) -> None:
        """Add a piece that was written; raise the failure of the other thread, if there was one."""
        with self._condition:
            if self._failure is not None:
                raise self._failure
            heapq.heappush(self._pieces, (offset, length, crc))
            while self._pieces and self._pieces[0][0] == self._complete:
                _, length, crc = heapq.heappop(self._pieces)
                self._crc = zlib_ng.crc32_combine(self._crc, crc, length)
                self._complete += length
            if self._has_run():
                self._condition.notify()

    def _has_run(self) -> bool:
        """Whether there is enough to write back, or nothing that would follow."""
        return self._complete - self._verified >= _RUN_BYTES or self._complete == self._end

    def finish(self) -> str:
        """Write back and verify the rest; return the SHA-256 of the whole file as it was read back.

        Raises:
            OSError: bytes are missing, cannot be made durable, or read back differently.

        """
        self._close()
        if self._failure is not None:
            raise self._failure
        if self._verified != self._end:
            raise OSError(errno.EIO, f"only {self._verified:,} of {self._end:,} bytes were written")
        return self._digest.hexdigest()

    def digest_to(self, size: int) -> str:
        """Return the SHA-256 of the whole file, once ``finish`` was called for a part that others have continued.

        Raises:
            OSError: the file cannot be read.

        """
        for piece in self._read_back(self._verified, size):
            self._digest.update(piece)
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Stop at once."""
        self._abandoned = True
        self._close()

    def _close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread is None:
            self._run()
        else:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._buffer = bytearray(_PIECE_BYTES)
            self._disk = DiskReader(self._fd, self._path, _PIECE_BYTES)
            while (run := self._wait()) is not None:
                self._verify(*run)
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that writes or waits
            with self._condition:
                self._failure = failure

    def _wait(self) -> tuple[int, int, int] | None:
        """Return the next run as its begin, end and CRC-32; ``None`` at the end."""
        with self._condition:
            while not self._closing and not self._has_run():
                self._condition.wait()
            if self._abandoned or self._complete == self._verified:
                return None
            crc, self._crc = self._crc, 0
            return self._verified, self._complete, crc

    def _verify(self, begin: int, end: int, expected: int) -> None:
        os.fdatasync(self._fd)
        crc, position = 0, begin
        for piece in self._read_back(begin, end):
            of_piece = zlib_ng.crc32(piece)
            crc = zlib_ng.crc32_combine(crc, of_piece, len(piece))
            self._digest.update(piece)
            is_last = position + len(piece) == self._end
            if self._whole or is_last or position // _PIECE_BYTES % _SAMPLED == 0:
                self._compare(position, len(piece), of_piece)
            position += len(piece)
        if crc != expected:
            raise _other_bytes(begin, end)
        with self._condition:
            self._verified = end

    def _read_back(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield a range of the file, in pieces that end at multiples of their size, as the page cache has it."""
        position = begin
        while position < end:
            chunk = memoryview(self._buffer)[: min(end - position, _PIECE_BYTES - position % _PIECE_BYTES)]
            count = os.preadv(self._fd, [chunk], position)
            if count == 0:
                raise OSError(errno.EIO, f"the file ends at byte {position:,}")
            position += count
            yield chunk[:count]

    def _compare(self, position: int, length: int, crc: int) -> None:
        found = self._disk.read(position, length)
        if len(found) != length or zlib_ng.crc32(found) != crc:
            raise _other_bytes(position, position + length)


def _other_bytes(begin: int, end: int) -> OSError:
    return OSError(errno.EIO, f"the disk returns other bytes than were written (bytes {begin:,} to {end:,})")
