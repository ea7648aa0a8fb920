"""Connections to web servers, and the answers on them as they arrive.

``http.client`` reads the answers. Each connection has one reader for all of them: ``http.client`` would make a new one
for each, and drop what it received behind an answer, which may be the first part of a second one.

All waits are short, and repeated until a check of the request raises: so a server that sends something now and then
ends no later than one that is silent, and a request that nobody needs any longer ends soon.
"""

from __future__ import annotations

import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException, HTTPResponse
from typing import Any

from ema_cli.record import record

ADDRESS_SECONDS = 10.0
"""Until one address of a host accepts: another one may."""
_WAKE_SECONDS = 0.25
"""How often a request that waits is checked."""
_HEAD_BYTES = 1 << 16
"""Of the status and the headers of an answer."""
_FRAME_BYTES = 8
"""Most bytes that may be sent per byte of a body to mark its chunks; they may have a single byte."""
_BUFFER_BYTES = 1 << 16
_OK, _SWITCHING, _FINAL = 200, 101, 200
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)

Check = Callable[[], None]
"""Raises if a request may not wait any longer."""


@record
class Proxy:
    """A server that forwards requests."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()
    """For itself."""


@record
class Route:
    """Where a connection leads."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None


class ConnectError(Exception):
    """There is no connection to a server.

    Attributes:
        host: the server, or the proxy.
        port: of it.
        cause: what the system says; ``None``: it did not accept in time.
        limit: the seconds that it had.
        is_secure: whether the fault is one of TLS.

    """

    def __init__(
        self,
        host: str,
        port: int,
        cause: OSError | None,
        *,
        limit: float = ADDRESS_SECONDS,
        is_secure: bool = False,
    ) -> None:
        super().__init__(f"{host}:{port}")
        self.host, self.port, self.cause, self.limit, self.is_secure = host, port, cause, limit, is_secure


class ProxyError(Exception):
    """A proxy does not forward; ``status`` is that of its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Connection:
    """An open connection."""

    def __init__(self, opened: socket.socket, route: Route) -> None:
        self.route = route
        opened.settimeout(_WAKE_SECONDS)
        self._wire = _Wire(opened)
        self._reader = _Reader(self._wire, _BUFFER_BYTES)
        self.free_since = 0.0
        """When the last answer ended, by ``time.monotonic``."""

    def makefile(self, _: str) -> Any:  # noqa: ANN401 - of the kind that http.client takes
        """Return the reader, as a socket returns one to ``http.client``."""
        return self._reader

    def ask(self, method: str, target: str, headers: Sequence[tuple[str, str]], check: Check) -> Response:
        """Send a request; return the answer before its body is read.

        Raises:
            HTTPException: it is not valid HTTP.
            OSError: the connection was lost.
            ValueError: the request is not valid.

        """
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        if any(re.search(r"[\r\n\0]", line) for line in lines):
            raise ValueError("a header has a line break")
        self._wire.check, self._wire.in_head = check, True
        self._wire.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self._reader.limit_lines(_HEAD_BYTES)
        while True:  # answers that announce another one, such as 103, come before it
            response: Any = HTTPResponse(self, method="GET")  # type: ignore[arg-type]
            response.begin()
            if response.status >= _FINAL or response.status == _SWITCHING:
                break
        self._wire.in_head = False
        return Response(self, response)

    def begin_body(self, length: int, check: Check) -> None:
        """Prepare for reading a body of ``length`` bytes."""
        self._wire.check = check
        self._reader.limit_lines(_HEAD_BYTES + _FRAME_BYTES * length)

    def is_clean(self) -> bool:
        """Whether nothing arrived since the end of the last answer, not even the end of the connection."""
        try:
            self._wire.socket.settimeout(0)
            clean = not self._reader.peek(1) and not self._wire.ended
            self._wire.socket.settimeout(_WAKE_SECONDS)
        except OSError:
            return False
        return clean

    def close(self) -> None:
        """Close it."""
        self._wire.socket.close()


class Response:
    """The answer to a request, before its body is read.

    Raises:
        HTTPException: the length of its body is not clear.

    """

    def __init__(self, connection: Connection, response: HTTPResponse) -> None:
        self.connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers
        lengths = self.headers.get_all("Content-Length", [])
        is_clear = len(lengths) <= 1 and all(_LENGTH.fullmatch(one) for one in lengths)
        if not is_clear or (lengths and "Transfer-Encoding" in self.headers):
            raise HTTPException("the length of the body is not clear")
        if self.headers.get_payload():
            raise HTTPException("a header has no name")
        self.length = int(lengths[0]) if lengths else None
        """Declared bytes of the body; ``None`` if there is no such header."""

    @property
    def content_type(self) -> str:
        """The type of the body, without parameters."""
        return self.headers.get_content_type()

    def read(self, most: int) -> bytes:
        """Return at least one and at most ``most`` bytes of the body as soon as they arrive; none at its end."""
        return self._response.read1(most)

    @property
    def frees(self) -> bool:
        """Whether the connection can be used for another request: the body was read to its end."""
        return not self._response.will_close and (self._response.length == 0 or self._response.isclosed())


class _Wire(io.RawIOBase):
    """What arrives on a connection."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.check: Check = _never
        self.in_head = False
        """Whether the beginning of an answer is expected."""
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int | None:  # noqa: ANN401 - a buffer
        while True:
            try:
                count = self.socket.recv_into(view)
            except TimeoutError:
                self.check()
                continue
            except (BlockingIOError, ssl.SSLWantReadError):
                return None  # nothing is there, and nothing was to be waited for
            self.check()
            self.ended = not count
            if self.ended and self.in_head:
                raise ConnectionResetError("the connection was closed before the answer")
            return count


class _Reader(io.BufferedReader):
    """A reader that outlives an answer, and bounds the lines of it: ``http.client`` would take megabytes of headers."""

    def limit_lines(self, nbytes: int) -> None:
        """Allow lines of so many bytes together, and as many again after an empty one, which ends headers."""
        self._most = self._left = nbytes

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(min(size or -1, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException("its lines are too long")
        if line in (b"\r\n", b"\n"):
            self._left = self._most
        return line

    def close(self) -> None:
        """Stay open at the end of an answer."""


def _never() -> None:
    """Wait for any time."""


def connect(route: Route, context: Callable[[], ssl.SSLContext], check: Check, seconds: float) -> Connection:
    """Return a new connection.

    Args:
        route: where it leads.
        context: returns the settings of TLS.
        check: of the request.
        seconds: until there is a connection.

    Raises:
        ConnectError: there is none.
        ProxyError: the proxy does not forward.

    """
    end = time.monotonic() + seconds
    host, port = (route.proxy.host, route.proxy.port) if route.proxy else (route.host, route.port)

    def check_both() -> None:
        check()
        if time.monotonic() > end:
            raise ConnectError(host, port, None, limit=seconds)

    try:
        opened = _reached(host, port, check_both)
    except OSError as error:
        raise ConnectError(host, port, error) from error
    try:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if route.scheme != "https":
            return Connection(opened, route)
        if route.proxy:
            _tunnel(opened, route, route.proxy, check_both)
        opened = context().wrap_socket(opened, server_hostname=route.host.rstrip("."), do_handshake_on_connect=False)
        _shake_hands(opened, check_both)
        return Connection(opened, route)
    except OSError as error:
        opened.close()
        raise ConnectError(route.host, route.port, error, is_secure=isinstance(error, ssl.SSLError)) from error
    except BaseException:
        opened.close()
        raise


def _reached(host: str, port: int, check: Check) -> socket.socket:
    """Return a socket. Another thread asks for the address of the host, as nothing else can end that."""
    future: Future[socket.socket] = Future()

    def work() -> None:
        try:
            future.set_result(socket.create_connection((host, port), ADDRESS_SECONDS))
        except Exception as error:  # noqa: BLE001 - raised where the result is requested
            future.set_exception(error)

    threading.Thread(target=work, name="connect", daemon=True).start()
    try:
        while not wait([future], _WAKE_SECONDS).done:
            check()
    except BaseException:
        future.add_done_callback(_close)
        raise
    return future.result()


def _close(future: Future[socket.socket]) -> None:
    if future.exception() is None:
        future.result().close()


def _tunnel(opened: socket.socket, route: Route, proxy: Proxy, check: Check) -> None:
    """Have a proxy forward a connection."""
    place = f"[{route.host}]:{route.port}" if ":" in route.host else f"{route.host}:{route.port}"
    answer = Connection(opened, route).ask("CONNECT", place, [("Host", place), *proxy.headers], check)
    if answer.status != _OK:
        raise ProxyError(answer.status)


def _shake_hands(opened: ssl.SSLSocket, check: Check) -> None:
    opened.settimeout(_WAKE_SECONDS)
    while True:
        try:
            opened.do_handshake()
        except TimeoutError:
            check()
        else:
            return
