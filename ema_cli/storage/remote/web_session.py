"""Sessions of aiohttp that trust no server. Imported only where something is on the web."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

_BUFFER_BYTES = 1 << 18
"""How much of a body is received before it is read; at twice as much aiohttp pauses the connection."""


class CleanRequest(aiohttp.ClientRequest):
    """A request over a connection on which nothing is left of earlier answers.

    A server that sends more than one answer to a request would have the second one taken for that to the next.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - a private class of aiohttp
        """Send the request; aiohttp opens another connection if there is something left on this one."""
        if conn.protocol is None or conn.protocol.should_close:
            raise aiohttp.ServerDisconnectedError("the server sent more than one answer")
        return await super().send(conn)


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
    }
    return aiohttp.ClientSession(**chosen)
