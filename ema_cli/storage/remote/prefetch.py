"""Fetch what will be needed: announced ranges become large requests, of which several are on their way at a time."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future

from ema_cli.storage.remote.daemon_pool import Background

Fetch = Callable[[int, int], bytes]
"""Returns the bytes from the first to before the second number."""

_REQUEST_BYTES = 1 << 24
_GAP_BYTES = 1 << 12
"""Ranges that lie closer together are fetched with what is between them: padding, the headers of records."""
_PART_BYTES = 1 << 17
"""What was taken of a request is forgotten in such parts: with many sources, what is left of each would add up."""
_FETCHERS = Background("fetch", threads=12)


class _Chunk:
    """A range that is fetched in one request, and forgotten part by part."""

    __slots__ = ("begin", "end", "future", "left")

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = begin
        self.left: list[int] = []
        """Of each part, the announced bytes that were not taken yet."""
        self.future: Future[list[bytes]] | None = None
        """The parts; those that were taken whole are empty."""
        self.grow(begin, end)

    def grow(self, begin: int, end: int) -> None:
        """Reach until ``end``, from ``begin`` on announced; nothing is requested yet."""
        self.left += [0] * (-(-(end - self.begin) // _PART_BYTES) - len(self.left))
        self.end = end
        self.count(begin, end, 1)

    def count(self, begin: int, end: int, sign: int) -> None:
        """Note that a range was announced once more, or taken."""
        while begin < end:
            number = (begin - self.begin) // _PART_BYTES
            stop = min(end, self.begin + (number + 1) * _PART_BYTES)
            self.left[number] += sign * (stop - begin)
            begin = stop

    def take(self, parts: list[bytes], offset: int, view: memoryview) -> int:
        """Copy out of one part into the front of ``view``; return how many bytes, 0 if it was forgotten."""
        number, inside = divmod(offset - self.begin, _PART_BYTES)
        piece = memoryview(parts[number])[inside : inside + len(view)]
        view[: len(piece)] = piece
        return len(piece)


class Ahead:
    """The ranges of one source that were announced and not taken yet. Safe to use from several threads."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._chunks: list[_Chunk] = []
        """By begin; they do not overlap."""
        self._growing: _Chunk | None = None
        """The chunk at the end of the last announcement, which the next one may go on with."""
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def announce(self, begin: int, end: int) -> None:
        """Have a range fetched, unless it is on its way already."""
        with self._lock:
            while begin < end:
                known = self._find(begin)
                if known is not None:
                    known.count(begin, min(end, known.end), 1)
                    begin = known.end
                else:
                    begin = self._add(begin, end)

    def take(self, offset: int, view: memoryview) -> int:
        """Copy what is announced at ``offset`` into the front of ``view``; return how many bytes, 0 if none."""
        with self._lock:
            chunk = self._find(offset)
            if chunk is None:
                return 0
            self._request(chunk)
        assert chunk.future is not None  # noqa: S101 - requested above
        parts = chunk.future.result()
        taken = chunk.take(parts, offset, view)
        with self._lock:
            chunk.count(offset, offset + taken, -1)
            self._forget(chunk, parts, (offset - chunk.begin) // _PART_BYTES)
        return taken

    def _forget(self, chunk: _Chunk, parts: list[bytes], number: int) -> None:
        """Forget a part if all that was announced of it was taken, and a chunk with its last part."""
        if chunk.left[number] > 0:
            return
        parts[number] = b""
        position = self._number(chunk.begin)
        if max(chunk.left) <= 0 and position >= 0 and self._chunks[position] is chunk:
            del self._chunks[position]
            if self._growing is chunk:
                self._growing = None  # it holds what was fetched

    def close(self) -> None:
        """Forget everything; requests that wait are not made any more."""
        self.closed.set()
        with self._lock:
            for chunk in self._chunks:
                if chunk.future is not None:
                    chunk.future.cancel()
            self._chunks.clear()
            self._growing = None

    def _number(self, offset: int) -> int:
        """Return the number of the last chunk that begins at ``offset`` or before, -1 if there is none."""
        return bisect_right(self._chunks, offset, key=lambda chunk: chunk.begin) - 1

    def _find(self, offset: int) -> _Chunk | None:
        number = self._number(offset)
        found = self._chunks[number] if number >= 0 else None
        return found if found is not None and offset < found.end else None

    def _add(self, begin: int, end: int) -> int:
        """Announce some of a range of which the first byte is new; return where the rest begins."""
        number = self._number(begin) + 1
        following = self._chunks[number].begin if number < len(self._chunks) else end
        growing = self._growing
        near = number > 0 and self._chunks[number - 1] is growing  # nothing lies between
        if near and growing is not None and growing.future is None and 0 <= begin - growing.end <= _GAP_BYTES:
            stop = min(end, following, growing.begin + _REQUEST_BYTES)
            if stop > begin:
                growing.grow(begin, stop)
                return stop
        if growing is not None:
            self._request(growing)
        stop = min(end, following, begin + _REQUEST_BYTES)
        self._growing = _Chunk(begin, stop)
        self._chunks.insert(number, self._growing)
        return stop

    def _request(self, chunk: _Chunk) -> None:
        if chunk.future is None:
            begin, end = chunk.begin, chunk.end
            chunk.future = _FETCHERS.submit(lambda: _cut(self._fetch(begin, end)))


def _cut(data: bytes) -> list[bytes]:
    return [data[begin : begin + _PART_BYTES] for begin in range(0, len(data), _PART_BYTES)]
