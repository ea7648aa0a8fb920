"""Answers of web servers to requests for a range: what their headers declare, and their body.

Headers may be wrong, a body may be endless: what is not exactly the requested range is an error, and nothing beyond
the range is read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from ema_cli.record import record
from ema_cli.storage.remote.limits import PACE_BYTES, PACE_SECONDS
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.text import quoted

_WHOLE, PARTIAL = 200, 206
_SMALL_BYTES = 1 << 15
"""Smaller pieces of a body are joined: a server may send single bytes, each of which would be an object."""
_STEPS = 16
"""How often in ``PACE_SECONDS`` the progress of a body is noted: timers cost more than the bytes."""
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


def declared_range(answer: Any) -> DeclaredRange:  # noqa: ANN401 - of aiohttp
    """Return what an answer with the status 206 declares.

    Raises:
        StoreError: it is not one range of the file, or it is encoded.

    """
    headers = answer.headers
    for name, plain in (("Content-Encoding", ("", "identity")), ("Transfer-Encoding", ("", "chunked"))):
        encoding = headers.get(name, "").strip().lower()
        if encoding not in plain:
            reason = f"the server sent encoded data, which was not requested ({name}: {quoted(encoding)})"
            hint = "serve the file as it is, without compression"
            raise StoreError(StoreFailure(kind=FailureKind.REFUSED, reason=reason, hint=hint))
    if answer.status == _WHOLE:
        raise wrong_answer("the server sent the whole file instead of a range")
    text = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(text.strip())
    if answer.status != PARTIAL or found is None:
        kind = f", Content-Type {quoted(answer.content_type)}" if answer.content_type.startswith("multipart") else ""
        raise wrong_answer(f"the server sent {answer.status}, Content-Range {quoted(text)}{kind} instead of a range")
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


async def read_body(answer: Any, length: int, arrived: Callable[[], None]) -> list[bytes | bytearray]:  # noqa: ANN401
    """Return the body of an answer, in pieces as they arrived: joining them would cost as much as receiving them.

    Args:
        answer: of aiohttp.
        length: bytes.
        arrived: called from time to time while the body arrives, and at its end.

    Raises:
        StoreError: it does not have exactly ``length`` bytes, or stalls.

    """
    declared = answer.content_length
    if declared is not None and declared != length:
        raise wrong_answer(f"the server announced {declared:,} instead of {length:,} bytes")
    pieces: list[bytes | bytearray] = []
    done = mark = 0
    clock = asyncio.get_running_loop().time
    noted = clock()
    try:
        async with asyncio.timeout(PACE_SECONDS) as limit:
            while piece := await answer.content.readany():
                done += len(piece)
                if done > length:
                    raise wrong_answer(f"the server sent more than the requested {length:,} bytes")
                add_piece(pieces, piece)
                if done - mark >= PACE_BYTES and (now := clock()) >= noted + PACE_SECONDS / _STEPS:
                    mark, noted = done, now
                    limit.reschedule(now + PACE_SECONDS)
                    arrived()
    except TimeoutError as error:
        raise _stalled(done, length) from error
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
