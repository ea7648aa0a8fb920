"""What a store may send, and how long it may take: no server is trusted with memory or time.

The limits are checked where the libraries receive answers (``aiohttp_answers``, ``httpx_answers``), as these read
whatever they are sent. An ``Allowance`` belongs to one call of a library, which may be many requests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure

CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0
"""Without a byte of an answer, also of its beginning."""
PACE_SECONDS, PACE_BYTES = 60.0, 1 << 16
"""In each such period of an answer at least so many bytes, or its rest, have to arrive: about 1 kB/s."""
CALL_SECONDS = 120.0
"""For a description or a listing, with all its pages."""
CALL_BYTES = 1 << 26
"""Of descriptions and listings in one call. Objects of Python take several times as much."""
WAIT_SECONDS = 300.0
"""Of delays that a server asks for (Retry-After), in one call."""
REQUEST_SECONDS = 600.0
"""For a request to be accepted, with the data that it sends: up to 16 MiB, unless an output is larger than 75 GB."""
_BUSY, _UNAVAILABLE, _PARTIAL, _OK = 429, 503, 206, 200


def beyond(reason: str, kind: FailureKind = FailureKind.FAILING) -> StoreError:
    """Return the error for a server that exceeds a limit, or does not answer what was requested."""
    return StoreError(StoreFailure(kind=kind, reason=reason, hint="run again later", is_final=True))


@dataclass(kw_only=True)
class Allowance:
    """What is left for one call."""

    nbytes: int
    """Of answers without a range."""
    deadline: float | None
    """By ``time.monotonic``."""
    wait_seconds: float
    """Of delays that the server asks for."""
    tag: str | None = None
    """The entity tag (ETag) that ranges have, if it is reported."""

    def check(self) -> None:
        """Raise ``StoreError`` after the deadline."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise beyond(f"the server takes longer than {CALL_SECONDS:.0f} seconds for a description or listing")

    def wait(self, seconds: float) -> None:
        """Count a delay that the server asks for; raise ``StoreError`` if it is too long."""
        self.wait_seconds -= seconds
        if self.wait_seconds < 0:
            reason = f"the server is busy, and asks to wait for {seconds:,.0f} seconds"
            raise beyond(reason, FailureKind.BUSY)
        if self.deadline is not None:
            self.deadline += seconds


_ALLOWANCE: ContextVar[Allowance | None] = ContextVar("allowance", default=None)


@contextmanager
def allowed(*, seconds: float | None = None, tag: str | None = None) -> Iterator[None]:
    """Begin a call of a library: what it requests in this thread, or in tasks that it starts, counts together.

    Args:
        seconds: for all its answers together, without delays that the server asks for; ``None``: any time.
        tag: the entity tag of the object of which a range is requested.

    """
    deadline = None if seconds is None else time.monotonic() + seconds
    token = _ALLOWANCE.set(Allowance(nbytes=CALL_BYTES, deadline=deadline, wait_seconds=WAIT_SECONDS, tag=tag))
    try:
        yield
    finally:
        _ALLOWANCE.reset(token)


def in_call() -> bool:
    """Whether ``allowed`` applies."""
    return _ALLOWANCE.get() is not None


def current_allowance() -> Allowance:
    """Return the allowance of the call; outside of one, an answer has one of its own."""
    return _ALLOWANCE.get() or Allowance(nbytes=CALL_BYTES, deadline=None, wait_seconds=WAIT_SECONDS)


class AnswerMeter:
    """The checks of one answer.

    Args:
        asked: the headers of the request.
        status: of the answer.
        headers: of the answer.

    Raises:
        StoreError: the answer is compressed, or not the requested range.

    """

    def __init__(self, asked: Mapping[str, str], status: int, headers: Mapping[str, str]) -> None:
        self.allowance = current_allowance()
        self.allowance.check()
        encoding = headers.get("Content-Encoding", "")
        if encoding and encoding.lower() not in ("identity", "aws-chunked"):
            raise beyond(f"the server sent an answer compressed with {encoding[:20]!r}, which was not requested")
        _check_tag(self.allowance.tag, status, headers.get("ETag"))
        self._left = _length(asked.get("Range", ""), status, headers.get("Content-Range", ""))
        self.delay = _delay(status, headers)
        """Seconds that the server asks to wait."""
        self._period, self._arrived = time.monotonic() + self.delay, 0
        if self.delay:
            self.allowance.wait(self.delay)

    def count(self, nbytes: int) -> None:
        """Count bytes of the body.

        Raises:
            StoreError: there are more than requested, or they arrive too slowly.

        """
        if self._left is not None:
            self._left -= nbytes
        else:
            self.allowance.nbytes -= nbytes
        if (self.allowance.nbytes if self._left is None else self._left) < 0:
            raise beyond("the server sent more than was requested")
        self.allowance.check()
        self._arrived += nbytes
        now = time.monotonic()
        if now - self._period >= PACE_SECONDS:
            if self._arrived < PACE_BYTES:
                raise beyond(f"the server sent only {self._arrived:,} bytes in {PACE_SECONDS:.0f} seconds")
            self._period, self._arrived = now, 0


def _check_tag(wanted: str | None, status: int, found: str | None) -> None:
    """Raise if a range is one of another version of the object."""
    if status == _PARTIAL and wanted and found and wanted.strip('"') != found.removeprefix("W/").strip('"'):
        raise beyond("the object was changed", FailureKind.REPLACED)


def _length(asked: str, status: int, declared: str) -> int | None:
    """Return how many bytes a range has; ``None`` if the answer is none."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    if found is None or status not in (_OK, _PARTIAL):
        return None
    first, last = int(found[1]), int(found[2])
    if status == _OK:
        raise beyond(f"the server sent the whole object instead of bytes {first}-{last}")
    if not declared.replace("=", " ").startswith(f"bytes {first}-{last}/"):
        raise beyond(f"the server sent Content-Range {declared[:60]!r} instead of bytes {first}-{last}")
    return last + 1 - first


def _delay(status: int, headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "").strip()
    return float(value) if status in (_BUSY, _UNAVAILABLE) and value.isdecimal() and len(value) < 9 else 0.0  # noqa: PLR2004 - years
