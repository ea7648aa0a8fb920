"""Requests to web servers: time-outs, redirects, and where credentials go.

Nothing that a server sends is trusted: a body is neither read here nor decompressed, and cookies are not stored.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.text import quoted, without_secrets

CONNECT_SECONDS = 30.0
"""Until there is a connection, including TLS."""
ANSWER_SECONDS = 60.0
"""Until an answer begins, including the connection and redirects, or since the server sent parts of other answers."""
MOST_REDIRECTS = 10
_STEPS = 16
"""How often in ``ANSWER_SECONDS`` the limits of waiting requests are moved: timers cost more than small answers."""
_MOST_CONNECTIONS = 100
"""How many open connections are given up for one request, before a new one is opened: as many as aiohttp keeps."""
_BUSY = 429
_FAILING = 500
_REDIRECTS = (301, 302, 303, 307, 308)
_CREDENTIALS = ("auth", "cookies", "headers")
"""Settings of fsspec that may contain secrets: they are for the host that the user named."""
_CLIENTS: weakref.WeakKeyDictionary[Any, WebClient] = weakref.WeakKeyDictionary()
"""By fsspec's file system of the web."""
_LOCK = threading.Lock()


def client_of(store: Any) -> WebClient:  # noqa: ANN401 - fsspec has no types
    """Return the client with the settings of one of fsspec's file systems of the web."""
    with _LOCK:
        return _CLIENTS.setdefault(store, WebClient(store))


class WebClient:
    """Connections to web servers."""

    def __init__(self, store: Any) -> None:  # noqa: ANN401
        self._store = weakref.ref(store)
        self._sessions: dict[bool, Any] = {}
        """By whether they are for the host that the user named."""
        self._waiting: set[asyncio.Timeout] = set()
        """The limits of requests that wait for an answer."""
        self._moved = 0.0
        """When their time was moved, by the clock of the event loop."""

    @asynccontextmanager
    async def get(
        self,
        address: Any,  # noqa: ANN401 - yarl's URL
        headers: Mapping[str, str],
        *,
        redirects: bool = True,
    ) -> AsyncIterator[Any]:
        """Send a request, follow redirects unless ``redirects`` is false, and yield the answer before its body is read.

        Raises:
            StoreError: a redirect is not followed.
            TimeoutError: the answer does not begin in time.

        """
        async with asyncio.timeout(ANSWER_SECONDS) as limit:
            self._waiting.add(limit)
            try:
                answer = await self._follow(address, headers, redirects=redirects)
            finally:
                self._waiting.discard(limit)
        try:
            yield answer
        except BaseException:
            answer.close()  # what follows on this connection could be taken for another answer
            raise
        answer.release()  # which closes the connection if the body was not read to its end

    def wait_on(self) -> None:
        """Let all requests wait for ``ANSWER_SECONDS`` from now: a server may answer one after another."""
        now = asyncio.get_running_loop().time()
        if now < self._moved + ANSWER_SECONDS / _STEPS:
            return
        self._moved, deadline = now, now + ANSWER_SECONDS
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(deadline)

    async def _follow(self, first: Any, headers: Mapping[str, str], *, redirects: bool) -> Any:  # noqa: ANN401
        address = first
        for _ in range(MOST_REDIRECTS + 1):
            answer = await self._request(address, headers, named=_is_same_host(first, address))
            target = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or (target is None and redirects):
                return answer
            answer.release()
            if target is None or not redirects:
                raise _not_followed("redirects, which is not followed")
            address = _target(first, address, target)
        raise _not_followed(f"redirects more than {MOST_REDIRECTS} times", FailureKind.FAILING)

    async def _request(self, address: Any, headers: Mapping[str, str], *, named: bool) -> Any:  # noqa: ANN401
        import aiohttp  # noqa: PLC0415 - only where something is on the web

        store = self._store()
        if store is None:  # nobody is left who would need the answer
            raise RuntimeError("the file system was deleted")
        options = _without_credentials(store.kwargs, named=named)
        options["headers"] = {**options.get("headers", {}), **headers}
        options["allow_redirects"] = False
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        return await _ask(self._session(store, named=named), address, options)

    def _session(self, store: Any, *, named: bool) -> Any:  # noqa: ANN401
        from ema_cli.storage.remote.web_session import open_session  # noqa: PLC0415

        if named not in self._sessions:
            session = open_session(_without_credentials(store.client_kwargs, named=named))
            weakref.finalize(store, store.close_session, store.loop, session)
            self._sessions[named] = session
        return self._sessions[named]


async def _ask(session: Any, address: Any, options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Send a request, and return the answer to it.

    An answer on a connection that was used before may be a second one to another request: if it is not what was asked
    for, another connection decides. A server that is busy or fails is not asked at once: it is asked again later.
    """
    from ema_cli.storage.remote.web_session import SecondAnswerError  # noqa: PLC0415

    for _ in range(_MOST_CONNECTIONS):
        try:
            answer = await session.get(address, **options)
        except SecondAnswerError:
            continue
        if not answer.reused or _is_expected(answer, options["headers"]):
            return answer
        answer.close()
    return await session.get(address, **options)


def _is_expected(answer: Any, headers: Mapping[str, str]) -> bool:  # noqa: ANN401
    """Whether an answer begins with the first byte that was asked for, or sends the client elsewhere, or away."""
    if answer.status in (*_REDIRECTS, _BUSY) or answer.status >= _FAILING:
        return True
    first = headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
    return bool(answer.headers.get("Content-Range", "").strip().startswith(f"bytes {first}-"))


def _without_credentials(options: Mapping[str, Any], *, named: bool) -> dict[str, Any]:
    return {name: value for name, value in options.items() if named or name not in _CREDENTIALS}


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
        found = address.join(URL(target))
        if found.scheme not in ("http", "https") or not found.host:
            raise _not_followed(f"redirects to {found.scheme or 'no'}:, which is not followed")
        found = found.with_user(None)
        same = _is_same_host(first, found)
    except ValueError as error:
        raise _not_followed(f"redirects to {quoted(without_secrets(target))}, which is not a valid URL") from error
    if address.scheme == "https" and found.scheme == "http":
        raise _not_followed("redirects from https to http, which is not followed, as anybody could change the data")
    return found.with_user(first.user).with_password(first.password) if same and first.user is not None else found


def _not_followed(reason: str, kind: FailureKind = FailureKind.REFUSED) -> StoreError:
    return StoreError(StoreFailure(kind=kind, reason=f"the server {reason}", is_final=True))
