"""Requests to web servers: time-outs, redirects, and where credentials go.

Nothing that a server sends is trusted: a body is neither read here nor decompressed, and cookies are not stored.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from ipaddress import IPv4Address
from typing import Any

from ema_cli._version import __version__
from ema_cli.errors import UsageError
from ema_cli.record import record
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.web_connection import Check, Connection, Response, Route, connect
from ema_cli.storage.remote.web_settings import WebSettings, basic_login, web_settings
from ema_cli.storage.url import Url
from ema_cli.text import quoted, without_secrets

CONNECT_SECONDS = 30.0
"""Until there is a connection, including TLS."""
ANSWER_SECONDS = 60.0
"""Until an answer begins, including the connection and redirects, or since the server sent parts of other answers."""
MOST_REDIRECTS = 10
_IDLE_SECONDS = 15.0
"""How long a connection is kept for another request."""
_MOST_CONNECTIONS = 100
"""How many open connections are given up for one request, before a new one is opened."""
_BUSY = 429
_FAILING = 500
_REDIRECTS = (301, 302, 303, 307, 308)
_CLIENTS: dict[str, WebClient] = {}
"""By scheme and host."""
_LOCK = threading.Lock()
os.register_at_fork(after_in_child=_CLIENTS.clear)  # a connection is not shared


def client_of(url: Url) -> WebClient:
    """Return the client for a host.

    Raises:
        UsageError: the settings of the user are not valid, or a library is not installed.

    """
    root = "/".join(url.address.split("/")[:3])
    with _LOCK:
        if root not in _CLIENTS:
            _CLIENTS[root] = WebClient(web_settings())
        return _CLIENTS[root]


@record
class Answer:
    """An answer, before its body is read."""

    response: Response
    host: str
    """The server that sent it."""
    closed: threading.Event
    """Set when nobody needs it any longer."""


class WebClient:
    """Connections to the server that a user named, and to those that it redirects to.

    Args:
        settings: of its requests.
        redirects: whether redirects are followed.
        connect_seconds: until there is a connection, including TLS; ``None``: ``CONNECT_SECONDS``.
        answer_seconds: until an answer begins; ``None``: ``ANSWER_SECONDS``.

    """

    def __init__(
        self,
        settings: WebSettings,
        *,
        redirects: bool = True,
        connect_seconds: float | None = None,
        answer_seconds: float | None = None,
    ) -> None:
        self._settings = settings
        self._redirects = redirects
        self._connect_seconds, self._answer_seconds = connect_seconds, answer_seconds
        self._idle: dict[Route, list[Connection]] = {}
        """Open connections without a request, the last used one at the end."""
        self._users = 0
        """How many files are open."""
        self._lock = threading.Lock()
        self._context = settings.context
        self._heard = 0.0
        """When the server last sent a part of an answer, by ``time.monotonic``."""

    def parse(self, url: Url) -> Any:  # noqa: ANN401 - yarl's URL
        """Return an address in the form in which it is requested.

        Raises:
            UsageError: it is not valid, or a library is not installed.

        """
        try:
            from yarl import URL  # noqa: PLC0415 - only where something is on the web
        except ImportError as error:
            message = f"{url.scheme}:// needs a library that is not installed: {error}"
            raise UsageError(message, hint="pip install yarl") from error
        try:
            address = URL(url.address, encoded=url.is_encoded or self._settings.is_encoded)
            valid = _has_server(address)
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"{quoted(str(url))} is not a valid URL", hint="https://HOST/PATH")
        return address

    @contextmanager
    def get(self, address: Any, headers: Mapping[str, str], closed: threading.Event) -> Iterator[Answer]:  # noqa: ANN401
        """Send a request, follow redirects, and yield the answer before its body is read.

        Raises:
            StoreError: the answer does not begin in time, a redirect is not followed, or ``closed`` is set.

        """
        begin, limit = time.monotonic(), self._answer_seconds or ANSWER_SECONDS

        def check() -> None:
            raise_if_cancelled(closed)
            if time.monotonic() > max(begin, self._heard) + limit:
                raise _no_answer(limit)

        answer = self._follow(address, headers, check, closed)
        try:
            yield answer
        except BaseException:
            answer.response.connection.close()  # what follows on it could be taken for another answer
            raise
        self._release(answer)

    def wait_on(self) -> None:
        """Let all requests wait for their time from now: a server may answer one after another."""
        self._heard = time.monotonic()

    def enter(self) -> None:
        """Count a file that is opened."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count a file that is closed; close the connections with the last one."""
        with self._lock:
            self._users -= 1
            idle = [] if self._users else [one for found in self._idle.values() for one in found]
            if not self._users:
                self._idle.clear()
        for connection in idle:
            connection.close()

    def _follow(self, first: Any, headers: Mapping[str, str], check: Check, closed: threading.Event) -> Answer:  # noqa: ANN401
        address = first
        for _ in range(MOST_REDIRECTS + 1):
            response = self._request(address, headers, check, named=_is_same_host(first, address))
            answer = Answer(response=response, host=address.host, closed=closed)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or (target is None and self._redirects):
                return answer
            self._release(answer)
            if target is None or not self._redirects:
                raise _not_followed("redirects, which is not followed")
            address = _target(first, address, target)
        raise _not_followed(f"redirects more than {MOST_REDIRECTS} times", FailureKind.FAILING)

    def _request(self, address: Any, headers: Mapping[str, str], check: Check, *, named: bool) -> Response:  # noqa: ANN401
        """Send a request, and return the answer to it.

        An answer on a connection that was used before may be a second one to another request: if it is not what was
        asked for, another connection decides. A server that is busy or fails is not asked at once: it is asked again
        later.
        """
        proxy = self._settings.proxy_of(address.scheme, address.host)
        route = Route(scheme=address.scheme, host=address.raw_host, port=address.port, proxy=proxy)
        bare = address.with_user(None) if address.raw_user is not None or address.raw_password is not None else address
        sent = self._headers(address, bare.host_port_subcomponent, headers, named=named)
        target = bare.raw_path_qs
        if proxy and route.scheme == "http":
            target, sent = str(bare.with_fragment(None)), [*sent, *proxy.headers]
        for number in range(_MOST_CONNECTIONS + 1):
            found = self._idle_connection(route) if number < _MOST_CONNECTIONS else None
            connection = found or connect(route, self._tls, check, self._connect_seconds or CONNECT_SECONDS)
            try:
                response = connection.ask("GET", target, sent, check)
            except BaseException as error:
                connection.close()
                if found and isinstance(error, ConnectionError | HTTPException):
                    continue
                raise
            if not found or _is_expected(response, headers):
                break
            connection.close()
        return response

    def _headers(self, address: Any, host: str, headers: Mapping[str, str], *, named: bool) -> list[tuple[str, str]]:  # noqa: ANN401
        """Return the headers of a request, with credentials only for the ``named`` host."""
        chosen = {"host": ("Host", host), "accept": ("Accept", "*/*")}
        chosen["user-agent"] = ("User-Agent", f"ema-avg/{__version__}")
        login = self._settings.headers if named else ()
        if address.raw_user is not None or address.raw_password is not None:
            login = (*login, ("Authorization", basic_login(address.user or "", address.password or "")))
        elif named and not any(name.lower() == "authorization" for name, _ in login):
            login = (*login, *self._settings.login_of(address.host))
        chosen.update((name.lower(), (name, value)) for name, value in (*login, *headers.items()))
        return list(chosen.values())

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            self._context = self._context or ssl.create_default_context()
            return self._context

    def _idle_connection(self, route: Route) -> Connection | None:
        """Return an open connection on which nothing is left of earlier answers, as far as it has arrived.

        A server that sends more than one answer to a request would have the second one taken for that to the next.
        """
        while True:
            with self._lock:
                found = self._idle.get(route)
                connection = found.pop() if found else None
            if connection is None:
                return None
            if time.monotonic() < connection.free_since + _IDLE_SECONDS and connection.is_clean():
                return connection
            connection.close()

    def _release(self, answer: Answer) -> None:
        """Keep a connection for other requests, unless a part of the answer was not read."""
        connection = answer.response.connection
        if not answer.response.frees:
            connection.close()
            return
        connection.free_since = time.monotonic()
        with self._lock:
            self._idle.setdefault(connection.route, []).append(connection)


def _no_answer(seconds: float) -> StoreError:
    reason = f"no answer began within {seconds:g} s"
    return StoreError(StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint="run again later"))


def raise_if_cancelled(closed: threading.Event) -> None:
    """Raise ``StoreError`` if nobody needs an answer any longer."""
    if closed.is_set():
        reason = "the request is no longer needed"
        raise StoreError(StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, is_final=True))


def _is_expected(response: Response, headers: Mapping[str, str]) -> bool:
    """Whether an answer begins with the first byte that was asked for, or sends the client elsewhere, or away."""
    if response.status in (*_REDIRECTS, _BUSY) or response.status >= _FAILING:
        return True
    first = headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
    return bool(response.headers.get("Content-Range", "").strip().startswith(f"bytes {first}-"))


def _has_server(address: Any) -> bool:  # noqa: ANN401
    """Whether an address has a host and a port.

    Raises:
        ValueError: it has none, or numbers such as 127.1, which a system takes for an address of IPv4.

    """
    host = address.raw_host or ""
    if host.replace(".", "").isdecimal():
        IPv4Address(host)
    return bool(host) and address.port is not None


def _is_same_host(first: Any, address: Any) -> bool:  # noqa: ANN401
    """Whether credentials for one address may be sent to another: to the same server, also by TLS now."""
    upgraded = (first.scheme, first.port, address.scheme, address.port) == ("http", 80, "https", 443)
    return first.host == address.host and (first.origin() == address.origin() or upgraded)


def _target(first: Any, address: Any, target: str) -> Any:  # noqa: ANN401
    """Return the address that a redirect leads to, with the credentials of the first address only if it is its host.

    Raises:
        StoreError: it is not followed.

    """
    from yarl import URL  # noqa: PLC0415

    try:
        # ``http.client`` decodes headers as Latin-1; addresses are UTF-8.
        target = target.encode("latin-1").decode("utf-8", "surrogateescape")
        found = address.join(URL(target))
        if found.scheme not in ("http", "https") or not found.host:
            raise _not_followed(f"redirects to {found.scheme or 'no'}:, which is not followed")
        if not _has_server(found):
            raise ValueError(found.host)
        found = found.with_user(None)
        same = _is_same_host(first, found)
    except ValueError as error:
        raise _not_followed(f"redirects to {quoted(without_secrets(target))}, which is not a valid URL") from error
    if address.scheme == "https" and found.scheme == "http":
        raise _not_followed("redirects from https to http, which is not followed, as anybody could change the data")
    return found.with_user(first.user).with_password(first.password) if same and first.user is not None else found


def _not_followed(reason: str, kind: FailureKind = FailureKind.REFUSED) -> StoreError:
    return StoreError(StoreFailure(kind=kind, reason=f"the server {reason}", is_final=True))
