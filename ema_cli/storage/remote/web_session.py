"""Sessions of aiohttp that trust no server. Imported only where something is on the web."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import aiohttp

_BUFFER_BYTES = 1 << 18
"""How much of a body is received before it is read; at twice as much aiohttp pauses the connection."""


_USED = WeakSet[Any]()
"""The open connections on which a request was sent."""


class SecondAnswerError(aiohttp.ServerDisconnectedError):
    """A server sent more than one answer to an earlier request."""


class CleanAnswer(aiohttp.ClientResponse):
    """An answer that knows whether it may be left over from another request."""

    reused = False
    """Whether other requests were sent on its connection: then it may be a second answer to one of them."""


class CleanRequest(aiohttp.ClientRequest):
    """A request over a connection on which nothing is left of earlier answers, as far as it has arrived.

    A server that sends more than one answer to a request would have the second one taken for that to the next.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - a private class of aiohttp
        """Send the request, unless there is something left on the connection."""
        if conn.protocol is None or conn.protocol.should_close:
            raise SecondAnswerError("the server sent more than one answer")
        reused = conn.protocol in _USED
        _USED.add(conn.protocol)
        answer = await super().send(conn)
        if isinstance(answer, CleanAnswer):
            answer.reused = reused
        return answer


def open_session(settings: Mapping[str, Any]) -> aiohttp.ClientSession:
    """Return a session that neither decompresses nor stores cookies.

    Args:
        settings: of fsspec for aiohttp.

    """
    chosen = {
        **settings,
        "auto_decompress": False,
        "cookie_jar": aiohttp.DummyCookieJar(),
        "read_bufsize": _BUFFER_BYTES,
        "request_class": CleanRequest,
        "response_class": CleanAnswer,
    }
    return aiohttp.ClientSession(**chosen)
