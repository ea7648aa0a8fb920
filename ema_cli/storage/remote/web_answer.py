"""Answers of web servers to requests for a range: what their headers declare, and their body.

Headers may be wrong, a body may be endless: what is not exactly the requested range is an error, and nothing beyond
the range is read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.client import IncompleteRead

from ema_cli.record import record
from ema_cli.storage.remote.limits import PACE_BYTES, PACE_SECONDS
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.web_client import Answer, raise_if_cancelled
from ema_cli.storage.remote.web_connection import Response
from ema_cli.text import quoted

_WHOLE, PARTIAL = 200, 206
_SMALL_BYTES = 1 << 15
"""Smaller pieces of a body are joined: a server may send single bytes, each of which would be an object."""
_PIECE_BYTES = 1 << 18
"""Received at a time, if so much has arrived."""
_RANGE = re.compile(r"bytes[ =](\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@record
class DeclaredRange:
    """What the headers of an answer declare."""

    begin: int
    end: int
    """The first byte after the range."""
    total: int | None
    """The bytes of the whole file; ``None`` if they are not known."""
    tag: str | None
    """The entity tag (ETag): it changes with the file."""
    modified: str | None
    """The time of the last change, as text."""


def declared_range(response: Response) -> DeclaredRange:
    """Return what an answer with the status 206 declares.

    Raises:
        StoreError: it is not one range of the file, or it is encoded.

    """
    headers = response.headers
    for name, plain in (("Content-Encoding", ("", "identity")), ("Transfer-Encoding", ("", "chunked"))):
        encoding = headers.get(name, "").strip().lower()
        if encoding not in plain:
            reason = f"the server sent encoded data, which was not requested ({name}: {quoted(encoding)})"
            hint = "serve the file as it is, without compression"
            raise StoreError(StoreFailure(kind=FailureKind.REFUSED, reason=reason, hint=hint))
    if response.status == _WHOLE:
        raise wrong_answer("the server sent the whole file instead of a range")
    text = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(text.strip())
    if response.status != PARTIAL or found is None:
        kind = (
            f", Content-Type {quoted(response.content_type)}" if response.content_type.startswith("multipart") else ""
        )
        raise wrong_answer(f"the server sent {response.status}, Content-Range {quoted(text)}{kind} instead of a range")
    begin, end, total = int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3])
    if begin >= end or (total is not None and end > total):
        raise wrong_answer(f"the server sent Content-Range {quoted(text)}, which is not a range of a file")
    return DeclaredRange(
        begin=begin,
        end=end,
        total=total,
        tag=headers.get("ETag"),
        modified=headers.get("Last-Modified"),
    )


def read_body(answer: Answer, length: int, arrived: Callable[[], None]) -> list[bytes | bytearray]:
    """Return the body of an answer, in pieces as they arrived: joining them would cost as much as receiving them.

    Args:
        answer: whose body was not read yet.
        length: bytes.
        arrived: called from time to time while the body arrives, and at its end.

    Raises:
        HTTPException: it broke off, or its chunks are not valid.
        OSError: the connection was lost.
        StoreError: it does not have exactly ``length`` bytes, or stalls.

    """
    response = answer.response
    if response.length is not None and response.length != length:
        raise wrong_answer(f"the server announced {response.length:,} instead of {length:,} bytes")
    pieces: list[bytes | bytearray] = []
    done = mark = 0
    deadline = time.monotonic() + PACE_SECONDS

    def check() -> None:
        raise_if_cancelled(answer.closed)
        if time.monotonic() > deadline:
            raise _stalled(done, length)

    response.connection.begin_body(length, check)
    while piece := response.read(min(_PIECE_BYTES, length - done + 1)):
        done += len(piece)
        if done > length:
            raise wrong_answer(f"the server sent more than the requested {length:,} bytes")
        add_piece(pieces, piece)
        if done - mark >= PACE_BYTES:
            mark, deadline = done, time.monotonic() + PACE_SECONDS
            arrived()
    if done < length and response.length is not None:
        raise IncompleteRead(b"", length - done)
    if done < length:
        raise wrong_answer(f"received {done:,} of {length:,} bytes")
    arrived()
    return pieces


def add_piece(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Append a piece of a body, joined with the last one if both are small."""
    if len(piece) >= _SMALL_BYTES:
        pieces.append(piece)
    elif pieces and isinstance(pieces[-1], bytearray) and len(pieces[-1]) < _SMALL_BYTES:
        pieces[-1] += piece
    else:
        pieces.append(bytearray(piece))


def wrong_answer(reason: str) -> StoreError:
    """Return the error for an answer that is not what was requested; the next one may be."""
    hint = "run again later; a server that always answers so does not support byte ranges correctly"
    return StoreError(StoreFailure(kind=FailureKind.FAILING, reason=reason, hint=hint))


def _stalled(done: int, length: int) -> StoreError:
    too_few = f"fewer than {PACE_BYTES // 1024} KiB in the last {PACE_SECONDS:g} s"
    reason = f"the server is too slow: {done:,} of {length:,} bytes arrived, {too_few}"
    return StoreError(StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint="run again later"))
