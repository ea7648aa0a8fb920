"""A proxy before a store on the loopback that answers some requests as a hostile or broken server does."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.client
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_PIECE = bytes(1 << 16)
_LONGEST_SECONDS = 600
"""After which a request that is kept waiting is dropped, so that no thread remains."""


@dataclass(kw_only=True)
class Asked:
    """A request."""

    method: str
    path: str
    """With the query."""
    headers: Any
    read: Callable[[], bytes]
    """Reads the body."""
    forward: Callable[[], tuple[int, list[tuple[str, str]], bytes]]
    """Asks the store; returns the status, the headers and the body."""
    handler: BaseHTTPRequestHandler
    sent: list[int]
    """The bytes of each piece of a body that the client took, of all requests."""

    @property
    def range(self) -> tuple[int, int] | None:
        """The first and the last byte of the requested range."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(found[1]), int(found[2])) if found else None

    def begin(self, status: int, headers: list[tuple[str, str]], **more: str) -> None:
        """Send the head of an answer; headers in ``more``, with ``_`` for ``-``, replace others, or remove them."""
        new = {name.replace("_", "-").lower(): value for name, value in more.items()}
        head = [(name, value) for name, value in headers if name.lower() not in {*new, "connection", "date", "server"}]
        self.handler.send_response(status)
        for name, value in [*head, *((name, value) for name, value in new.items() if value)]:
            self.handler.send_header(name, value)
        self.handler.send_header("Connection", "close")
        self.handler.end_headers()

    def send(self, data: bytes) -> None:
        """Send bytes of the body."""
        self.handler.wfile.write(data)
        self.sent.append(len(data))

    def wait(self) -> None:
        """Wait until the client gives up."""
        self.handler.connection.settimeout(_LONGEST_SECONDS)
        with contextlib.suppress(OSError):
            self.handler.connection.recv(1)


Mode = Callable[[Asked], None]


def _answer(asked: Asked, status: int, body: bytes = b"", **headers: str) -> None:
    asked.read()
    asked.begin(status, [], content_length=str(len(body)), **headers)
    asked.send(body)


def flood(asked: Asked) -> None:
    """Send the right head, and then zeros without an end."""
    status, headers, _ = asked.forward()
    asked.begin(status, headers, content_length="", transfer_encoding="")
    for _ in range(1 << 17):  # 8 GiB
        asked.send(_PIECE)


def bomb(asked: Asked) -> None:
    """Send two gigabytes of zeros as two megabytes of gzip, although nobody asked for gzip."""
    status, headers, _ = asked.forward()
    asked.begin(status, headers, content_length="", content_encoding="gzip")
    packed = gzip.compress(bytes(1 << 24), 9)
    for _ in range(128):
        asked.send(packed)


def drip(asked: Asked) -> None:
    """Send the right answer, one byte in half a second."""
    status, headers, body = asked.forward()
    asked.begin(status, headers)
    for byte in body[: 2 * _LONGEST_SECONDS]:
        asked.send(bytes([byte]))
        time.sleep(0.5)


def silence(asked: Asked) -> None:
    """Never answer."""
    asked.read()
    asked.wait()


def stall(asked: Asked) -> None:
    """Send half of the right answer, and nothing more."""
    status, headers, body = asked.forward()
    asked.begin(status, headers)
    asked.send(body[: len(body) // 2])
    asked.wait()


def other_range(asked: Asked) -> None:
    """Send as many bytes of another place, and say so."""
    status, headers, body = asked.forward()
    first, last = asked.range or (0, 0)
    asked.begin(status, headers, content_range=f"bytes {first + 1}-{last + 1}/{last + 2}")
    asked.send(body[::-1])


def whole(asked: Asked) -> None:
    """Ignore the range: send the file from its beginning, with status 200."""
    _, headers, _ = asked.forward()
    asked.begin(200, headers, content_range="", content_length=str(1 << 33))
    for _ in range(1 << 17):
        asked.send(_PIECE)


def short(asked: Asked) -> None:
    """Send half of the announced bytes, and close."""
    status, headers, body = asked.forward()
    asked.begin(status, headers)
    asked.send(body[: len(body) // 2])


def half(asked: Asked) -> None:
    """Announce and send half of the bytes."""
    status, headers, body = asked.forward()
    asked.begin(status, headers, content_length=str(len(body) // 2))
    asked.send(body[: len(body) // 2])


def reset(asked: Asked) -> None:
    """Reset the connection."""
    asked.read()
    asked.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(asked.handler.connection.detach())


def deaf(asked: Asked) -> None:  # noqa: ARG001 - a mode
    """Do not read what the client sends."""
    time.sleep(_LONGEST_SECONDS)


def garbage(asked: Asked) -> None:
    """Answer with something that is no HTTP."""
    asked.read()
    asked.send(b"\x00\xff<html>\r\n" * 1000)


def huge(asked: Asked) -> None:
    """Send a document without an end."""
    asked.read()
    asked.begin(200, [], content_type="application/json")
    asked.send(b'{"items": [')
    for _ in range(1 << 17):
        asked.send(b" " * (1 << 16))


def changing(asked: Asked) -> None:
    """Report another version of the object each time."""
    status, headers, body = asked.forward()
    mark = str(time.monotonic_ns())
    body = re.sub(rb'"(generation|etag|oid)": "[^"]*"', rb'"\1": "' + mark.encode() + b'"', body)
    length = {"content_length": str(len(body))} if asked.method != "HEAD" else {}
    asked.begin(status, headers, etag=f'"{mark}"', **length)
    asked.send(body)


def status(code: int, **headers: str) -> Mode:
    """Return a mode that refuses with a status."""

    def refuse(asked: Asked) -> None:
        secret = f"{code} at https://me:secret@host/x?X-Amz-Signature=secret with hf_{'aB3dE' * 6}fGhI"
        _answer(asked, code, secret.encode() if asked.method != "HEAD" else b"", **headers)

    return refuse


def elsewhere(address: str) -> Mode:
    """Return a mode that redirects to another server."""
    return lambda asked: _answer(asked, 307, location=f"{address}{asked.path}")


MODES: dict[str, Mode] = {
    "flood": flood,
    "gzip bomb": bomb,
    "drip": drip,
    "no answer": silence,
    "stall": stall,
    "other range": other_range,
    "range ignored": whole,
    "short": short,
    "half": half,
    "reset": reset,
    "nothing read": deaf,
    "garbage": garbage,
    "huge document": huge,
    "new version": changing,
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "429": status(429, retry_after="1"),
    "429, an hour": status(429, retry_after="3600"),
    "500": status(500),
    "503": status(503, retry_after="1"),
}


@dataclass
class Plan:
    """What happens to which requests."""

    mode: Mode | None = None
    when: Callable[[Asked], bool] = lambda _: True
    times: int = 1 << 30
    """How often, before the proxy becomes honest."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of the requests that met the mode."""
    sent: list[int] = field(default_factory=list)
    """Bytes of bodies that were sent."""


class HostileProxy:
    """The proxy.

    Args:
        address: of the store.

    """

    def __init__(self, address: str) -> None:
        self.plan = Plan()
        self._lock = threading.Lock()
        self._store = urlsplit(address)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                self.close_connection = True
                if self.raw_requestline and self.parse_request():
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        proxy.answer(self)
                self.close_connection = True

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""

        @functools.cache
        def body() -> bytes:
            return _body(handler)

        def forward() -> tuple[int, list[tuple[str, str]], bytes]:
            return self._ask(handler.command, handler.path, handler.headers, body())

        headers = handler.headers
        sent = self.plan.sent
        asked = Asked(
            method=handler.command,
            path=handler.path,
            headers=headers,
            read=body,
            forward=forward,
            handler=handler,
            sent=sent,
        )
        with self._lock:
            plan = self.plan
            hostile = plan.mode is not None and plan.times > 0 and plan.when(asked)
            if hostile:
                plan.times -= 1
                plan.seen.append((asked.method, asked.path))
        if hostile and plan.mode is not None:
            plan.mode(asked)
            return
        status_code, answered, data = forward()
        length = {} if asked.method == "HEAD" or status_code in (204, 304) else {"content_length": str(len(data))}
        asked.begin(status_code, answered, **length)
        asked.send(data)

    def _ask(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(str(self._store.hostname), self._store.port, timeout=60)
        dropped = {"connection", "transfer-encoding", "content-length", "expect"}
        kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
        try:
            connection.request(method, path, body=body or None, headers={**kept, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            data = answer.read()
            found = [(name, value) for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
            return answer.status, found, data
        finally:
            connection.close()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    data = bytearray()
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        data += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return bytes(data)
