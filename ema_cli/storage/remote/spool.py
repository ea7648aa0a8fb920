"""Spooled ranges of a remote object: fetched once into an unnamed temporary file, as they are read in small pieces.

A transposed tensor is such a range: consecutive elements are far apart in its storage.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable

from zlib_ng import zlib_ng

from ema_cli.storage.remote.block_cache import Pieces

_PIECE_BYTES = 1 << 24


class _Range:
    """A range, and from its first read on its local copy."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self.left = 0
        """Bytes that are still to be read; at 0 the copy is deleted."""
        self.descriptor = -1
        self.users = 0
        self.lock = threading.Lock()


class Spool:
    """The spooled ranges of one source. Thread-safe."""

    def __init__(self, fetch: Callable[[int, int], Pieces]) -> None:
        self._fetch = fetch
        self._ranges: dict[tuple[int, int], _Range] = {}
        self._sums: dict[tuple[int, int], int] = {}
        """The CRC-32 of every range that was fetched."""
        self._lock = threading.Lock()

    def add(self, begin: int, end: int, wanted: int) -> None:
        """Spool a range until ``wanted`` bytes of it were read."""
        with self._lock:
            self._ranges.setdefault((begin, end), _Range(begin, end)).left += wanted

    def read(self, offset: int, view: memoryview) -> bool:
        """Fill ``view`` from a spooled range; return whether there is one."""
        with self._lock:
            holding = (one for one in self._ranges.values() if one.begin <= offset and offset + len(view) <= one.end)
            one = next(holding, None)
            if one is None:
                return False
            one.users += 1
        try:
            with one.lock:
                if one.descriptor < 0:
                    one.descriptor = self._copy(one.begin, one.end)
            _fill(one.descriptor, offset - one.begin, view)
        finally:
            self._release(one)
        return True

    def remove(self, begin: int, end: int, count: int) -> None:
        """Count ``count`` bytes of a range as read."""
        with self._lock:
            one = self._ranges.get((begin, end))
            if one is None:
                return
            one.left -= count
            one.users += 1
        self._release(one)

    def crc32(self, begin: int, end: int) -> int | None:
        """Return the CRC-32 of a range that was fetched, deleted since or not."""
        return self._sums.get((begin, end))

    def close(self) -> None:
        """Delete all ranges."""
        with self._lock:
            ranges = list(self._ranges.values())
            for one in ranges:
                one.left = 0
                one.users += 1
        for one in ranges:
            self._release(one)

    def _release(self, one: _Range) -> None:
        with self._lock:
            one.users -= 1
            if one.left > 0 or one.users or self._ranges.get((one.begin, one.end)) is not one:
                return
            del self._ranges[one.begin, one.end]
        if one.descriptor >= 0:
            os.close(one.descriptor)

    def _copy(self, begin: int, end: int) -> int:
        with tempfile.TemporaryFile(prefix="ema-avg-") as file:
            crc = 0
            for position in range(begin, end, _PIECE_BYTES):
                for piece in self._fetch(position, min(position + _PIECE_BYTES, end)):
                    crc = zlib_ng.crc32(piece, crc)
                    file.write(piece)
            file.flush()
            self._sums[begin, end] = crc
            return os.dup(file.fileno())


def _fill(descriptor: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += os.preadv(descriptor, [view[done:]], offset + done)
