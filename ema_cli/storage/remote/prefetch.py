"""Prefetch announced ranges, in large requests, several at a time."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate

from ema_cli.storage.remote.block_cache import Pieces
from ema_cli.storage.remote.daemon_pool import DaemonPool

Fetch = Callable[[int, int], Pieces]
"""Returns the bytes from the first offset up to the second."""

_REQUEST_BYTES = 1 << 23
_GAP_BYTES = 1 << 12
"""Ranges with a smaller gap are fetched together with the gap: padding, headers of records."""
_PART_BYTES = 1 << 17
"""What was taken of a request is counted by parts of this size: with many sources, the remains would add up."""
SMALL_REQUESTS, LARGE_REQUESTS = 24, 12
"""Sent at a time: small ones mostly wait for the store, large ones take memory and share the link."""
_SMALL_BYTES = 1 << 16
_SMALL_FETCHERS = DaemonPool("fetch-small", threads=SMALL_REQUESTS)
_LARGE_FETCHERS = DaemonPool("fetch-large", threads=LARGE_REQUESTS)
_MOST_BYTES = 3 << 26
"""While so many bytes are in memory, or on their way, nothing is requested before it is needed."""
_GROWING: dict[Prefetcher, None] = {}
"""Those with a request that was not sent yet, in the order of their announcements."""


class _Total:
    """How many bytes all sources requested and did not release. Thread-safe."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        """Add bytes, or subtract them."""
        with self._lock:
            self.nbytes += nbytes


_TOTAL = _Total()


class _Answer:
    """The bytes of a request, in pieces as they arrived: nothing is copied before it is taken."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces: list[bytes | bytearray] = list(pieces)
        """Those that were taken completely are empty."""
        self.starts = [0, *accumulate(map(len, pieces))]
        """The offset of each, and the end."""

    def number(self, offset: int) -> int:
        """Return the number of the piece with a byte."""
        return bisect_right(self.starts, offset) - 1

    def copy(self, offset: int, view: memoryview) -> int:
        """Copy from one piece to the beginning of ``view``; return the number of bytes, 0 if it was released."""
        number = self.number(offset)
        inside = offset - self.starts[number]
        piece = memoryview(self.pieces[number])[inside : inside + len(view)]
        view[: len(piece)] = piece
        return len(piece)


class _Request:
    """A range that is fetched in one request, and released piece by piece."""

    __slots__ = ("begin", "end", "future", "held", "left")

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = begin
        self.left: list[int] = []
        """For each part, the announced bytes that were not taken yet."""
        self.future: Future[_Answer] | None = None
        self.held = 0
        """Bytes that are counted in ``_TOTAL``."""
        self.grow(begin, end)

    def grow(self, begin: int, end: int) -> None:
        """Extend the range to ``end``; the bytes from ``begin`` on are announced. Before the request is sent."""
        self.left += [0] * (-(-(end - self.begin) // _PART_BYTES) - len(self.left))
        self.end = end
        self.count(begin, end, 1)

    def count(self, begin: int, end: int, sign: int) -> None:
        """Count that a range was announced again (``sign`` 1), or taken (-1)."""
        while begin < end:
            number = (begin - self.begin) // _PART_BYTES
            stop = min(end, self.begin + (number + 1) * _PART_BYTES)
            self.left[number] += sign * (stop - begin)
            begin = stop

    def release(self, answer: _Answer, begin: int, end: int) -> None:
        """Release the pieces with the bytes from ``begin`` to before ``end`` whose announced bytes were all taken."""
        first = (begin - self.begin) // _PART_BYTES
        last = (end - 1 - self.begin) // _PART_BYTES
        low, high = first * _PART_BYTES, min((last + 1) * _PART_BYTES, self.end - self.begin)
        for number in range(answer.number(low), answer.number(high - 1) + 1):
            parts = slice(answer.starts[number] // _PART_BYTES, (answer.starts[number + 1] - 1) // _PART_BYTES + 1)
            if max(self.left[parts]) <= 0:
                self.hold(self.held - len(answer.pieces[number]))
                answer.pieces[number] = b""

    def hold(self, nbytes: int) -> None:
        """Change the number of bytes that are in memory, or on their way."""
        _TOTAL.add(nbytes - self.held)
        self.held = nbytes


class Prefetcher:
    """The ranges of one source that were announced and not taken yet. Thread-safe."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._requests: list[_Request] = []
        """By their beginning; they do not overlap."""
        self._growing: _Request | None = None
        """The request with the end of the last announcement, which the next announcement may extend."""
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def announce(self, begin: int, end: int) -> None:
        """Announce a range: it is fetched, unless it was requested before."""
        with self._lock:
            while begin < end:
                known = self._find(begin)
                if known is not None:
                    known.count(begin, min(end, known.end), 1)
                    begin = known.end
                else:
                    begin = self._add(begin, end)

    def take(self, offset: int, view: memoryview) -> int:
        """Copy announced bytes at ``offset`` to the beginning of ``view``; return their number, 0 if there are none."""
        with self._lock:
            request = self._find(offset)
        if request is None:
            return 0
        if request.future is None:
            for one in list(_GROWING):  # they will be needed next
                if _TOTAL.nbytes >= _MOST_BYTES:
                    break
                one.send_growing()
            with self._lock:
                self._send(request)
        assert request.future is not None  # noqa: S101 - sent above
        answer = request.future.result()
        taken = 0
        while taken < len(view) and offset + taken < request.end:
            count = answer.copy(offset + taken - request.begin, view[taken:])
            if count == 0:
                break
            taken += count
        if taken:
            with self._lock:
                request.count(offset, offset + taken, -1)
                self._release(request, answer, offset, offset + taken)
        return taken

    def _release(self, request: _Request, answer: _Answer, begin: int, end: int) -> None:
        """Release what was taken completely, and the request with its last part."""
        request.release(answer, begin, end)
        position = self._number(request.begin)
        if max(request.left) <= 0 and position >= 0 and self._requests[position] is request:
            request.hold(0)
            del self._requests[position]
            if self._growing is request:
                self._growing = None  # it is complete

    def close(self) -> None:
        """Release everything; waiting requests are not sent."""
        self.closed.set()
        with self._lock:
            for request in self._requests:
                request.hold(0)
                if request.future is not None:
                    request.future.cancel()
            self._requests.clear()
            self._growing = None
            _GROWING.pop(self, None)

    def _number(self, offset: int) -> int:
        """Return the position of the last request that begins at or before ``offset``, -1 if there is none."""
        return bisect_right(self._requests, offset, key=lambda request: request.begin) - 1

    def _find(self, offset: int) -> _Request | None:
        number = self._number(offset)
        found = self._requests[number] if number >= 0 else None
        return found if found is not None and offset < found.end else None

    def _add(self, begin: int, end: int) -> int:
        """Add a range, the first byte of which is new; return the beginning of the rest."""
        number = self._number(begin) + 1
        following = self._requests[number].begin if number < len(self._requests) else end
        growing = self._growing
        near = number > 0 and self._requests[number - 1] is growing  # with nothing between them
        if near and growing is not None and growing.future is None and 0 <= begin - growing.end <= _GAP_BYTES:
            stop = min(end, following, growing.begin + _REQUEST_BYTES)
            if stop > begin:
                growing.grow(begin, stop)
                return stop
        if growing is not None:
            self._send(growing)
        stop = min(end, following, begin + _REQUEST_BYTES)
        self._growing = _Request(begin, stop)
        _GROWING[self] = None
        self._requests.insert(number, self._growing)
        return stop

    def send_growing(self) -> None:
        """Send what was announced and not sent yet."""
        with self._lock:
            if self._growing is not None:
                self._send(self._growing)

    def _send(self, request: _Request) -> None:
        _GROWING.pop(self, None)
        if request.future is None:
            begin, end = request.begin, request.end
            request.hold(end - begin)
            fetchers = _SMALL_FETCHERS if end - begin <= _SMALL_BYTES else _LARGE_FETCHERS
            request.future = fetchers.submit(lambda: _Answer(self._fetch(begin, end)))
