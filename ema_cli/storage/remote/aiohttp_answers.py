"""Answers of aiohttp within limits: that is what s3fs and gcsfs use.

Only what these libraries document is used: gcsfs passes ``session_kwargs`` on to aiohttp, which takes a class for its
answers; aiobotocore takes a class for its sessions.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from ema_cli.storage.remote import limits
from ema_cli.storage.remote.limits import AnswerMeter, beyond
from ema_cli.storage.remote.web_answer import add_piece

_PIECE_BYTES = 1 << 16


class MeteredStream:
    """The body of an answer, counted while it is read."""

    def __init__(self, stream: Any, meter: AnswerMeter) -> None:  # noqa: ANN401 - aiohttp's, or this
        self._stream = stream
        self._meter = meter

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    async def read(self, most: int = -1) -> bytes:
        """Return at most so many bytes, or all."""
        if most >= 0:
            return self._counted(await self._stream.read(min(most, _PIECE_BYTES)))
        pieces: list[bytes | bytearray] = []
        while piece := self._counted(await self._stream.readany()):
            add_piece(pieces, piece)
        return b"".join(pieces)

    def _counted(self, piece: bytes) -> bytes:
        self._meter.count(len(piece))
        return piece


class MeteredAnswer(aiohttp.ClientResponse):
    """An answer that is read within the limits."""

    async def read(self) -> bytes:
        """Return the body."""
        if not isinstance(self.content, MeteredStream):
            await meter(self, self.request_info.headers)
        return await super().read()


async def meter(answer: aiohttp.ClientResponse, asked: Any) -> None:  # noqa: ANN401 - a mapping
    """Check the head of an answer, wait as long as it asks to, and have its body counted.

    Args:
        answer: not read yet.
        asked: the headers of the request.

    Raises:
        StoreError: the answer exceeds the limits.

    """
    try:
        checked = AnswerMeter(asked, answer.status, answer.headers)
    except BaseException:
        answer.close()
        raise
    answer.content = MeteredStream(answer.content, checked)  # type: ignore[assignment]
    if checked.delay:
        await asyncio.sleep(checked.delay)


def session_options() -> dict[str, Any]:
    """Return the arguments for a session of aiohttp."""
    return {
        "response_class": MeteredAnswer,
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": timeouts(),
    }


def timeouts() -> aiohttp.ClientTimeout:
    """Return the time-outs of a request."""
    return aiohttp.ClientTimeout(
        total=limits.REQUEST_SECONDS, sock_connect=limits.CONNECT_SECONDS, sock_read=limits.STALL_SECONDS
    )


def session_class() -> type[Any]:
    """Return a session for aiobotocore."""
    from aiobotocore.httpsession import AIOHTTPSession  # noqa: PLC0415 - slow, and only for S3

    class MeteredSession(AIOHTTPSession):  # type: ignore[misc]
        """A session whose answers are within the limits."""

        async def send(self, request: Any) -> Any:  # noqa: ANN401
            """Send a request; return the answer, read if it has no stream."""
            streams, request.stream_output = request.stream_output, True
            limits.current_allowance().check()
            try:
                answer = await asyncio.wait_for(super().send(request), limits.REQUEST_SECONDS)
            except TimeoutError as error:
                reason = f"the server did not accept a request within {limits.REQUEST_SECONDS:,.0f} seconds"
                raise beyond(reason) from error
            request.stream_output = streams
            await meter(answer.raw, answer.raw.request_info.headers)
            if not streams:
                await answer.content
            return answer

    return MeteredSession
