"""A file on a web server, read by ranges.

One request tells whether the file exists, its size, and whether the server supports ranges, and has its first bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from ema_cli.errors import UsageError
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.web_answer import PARTIAL, DeclaredRange, declared_range, read_body, wrong_answer
from ema_cli.storage.remote.web_client import client_of
from ema_cli.storage.remote.web_failures import request_error, status_error
from ema_cli.storage.url import Url
from ema_cli.text import quoted

Answer = TypeVar("Answer")
_WHOLE, _BEYOND = 200, 416
_EMPTY = re.compile(r"bytes[ =]\*/0+", re.ASCII)


class WebObject:
    """A file on a web server, as it was when it was opened.

    Args:
        store: fsspec's file system of the web.
        url: of the file.
        head_bytes: how many of the first bytes to request.
        address: where to request the file if not at ``url``: redirects from there are not followed.

    Raises:
        UsageError: the URL is not valid.
        StoreError: the file does not exist, its server does not support ranges, or fails.

    """

    def __init__(
        self,
        store: Any,  # noqa: ANN401 - fsspec has no types
        url: Url,
        head_bytes: int,
        *,
        address: Url | None = None,
    ) -> None:
        self._store, self._client = store, client_of(store)
        self.url = url
        """The name of the file."""
        self.address = address or url
        """Where it is requested. May be replaced by another address of the same file."""
        self._redirects = address is None
        """Whether redirects are followed."""
        _parsed(store, self.address)
        self.size = 0
        """Bytes of the file."""
        self.head = b""
        """The first bytes: ``head_bytes``, or all."""
        self.tag: str | None = None
        """The entity tag."""
        self.modified: str | None = None
        """The time of the last change, as the server writes it."""
        self._proven = False
        """Whether every answer stated the entity tag of the first, which proves that all are of one version."""
        self._requests: set[Future[Any]] = set()
        self._run(self._open(head_bytes))

    @property
    def info(self) -> dict[str, Any]:
        """Size and entity tag, as fsspec describes a file."""
        return {"size": self.size, "ETag": self.tag}

    def read(self, begin: int, end: int) -> list[bytes | bytearray]:
        """Return the bytes from ``begin`` to before ``end``, in pieces.

        Raises:
            StoreError: the server fails, does not send exactly that, or the file was changed.

        """
        return self._run(self._read(begin, end))

    def raise_if_changed(self) -> None:
        """Ask for the file again, unless every answer has shown that it is of the same version.

        Raises:
            StoreError: it was changed or removed, or the server fails.

        """
        if not self._proven:
            self._run(self._compare())

    def close(self) -> None:
        """Cancel the requests that are still waiting for an answer."""
        for request in list(self._requests):
            request.cancel()

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Wait for a request; it does not outlive an interrupted wait."""
        request = asyncio.run_coroutine_threadsafe(work, self._store.loop)
        self._requests.add(request)
        try:
            return request.result()
        except (MemoryError, CancelledError):
            raise
        except Exception as error:  # aiohttp lets all kinds through
            raise request_error(error, self.url) from error
        finally:
            request.cancel()
            self._requests.discard(request)

    def _get(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Any]:
        return self._client.get(_parsed(self._store, self.address), headers, redirects=self._redirects)

    async def _open(self, head_bytes: int) -> None:
        async with self._get(_headers(0, head_bytes)) as answer:
            declared = self._described(answer)
            if answer.status == _WHOLE and declared.total != 0:
                raise _refused("the server does not support byte ranges")
            if declared.total is None:
                raise _refused("it is not a file of known size")
            end = min(head_bytes, declared.total)
            _check_range(declared, 0, end)
            self.head = b"".join(await read_body(answer, end, self._client.wait_on)) if end else b""
        self.size, self.tag, self.modified = declared.total, declared.tag, declared.modified
        self._proven = self._is_strong

    async def _compare(self) -> None:
        async with self._get(_headers(0, 1)) as answer:
            declared = self._described(answer)
            # With a tag, copies of the file on several servers may have other times.
            same_time = self.tag is not None or declared.modified == self.modified
            if declared.total not in (None, self.size) or declared.tag != self.tag or not same_time:
                raise _replaced()
            if answer.status == PARTIAL:
                await read_body(answer, 1, self._client.wait_on)  # so that the connection can be used again

    @property
    def _is_strong(self) -> bool:
        """Whether equal entity tags mean equal bytes."""
        return self.tag is not None and self.tag.startswith('"')

    async def _read(self, begin: int, end: int) -> list[bytes | bytearray]:
        tagged = {"If-Match": self.tag} if self.tag is not None and self._is_strong else {}
        async with self._get({**_headers(begin, end), **tagged}) as answer:
            if answer.status == _BEYOND:
                raise _replaced()
            declared = self._declared(answer)
            if declared.total not in (None, self.size) or (self.tag and declared.tag not in (None, self.tag)):
                raise _replaced()
            self._proven &= declared.tag == self.tag
            _check_range(declared, begin, end)
            return await read_body(answer, end - begin, self._client.wait_on)

    def _declared(self, answer: Any) -> DeclaredRange:  # noqa: ANN401
        if answer.status not in (_WHOLE, PARTIAL):
            raise status_error(answer, self.url, _parsed(self._store, self.address).host)
        return declared_range(answer)

    def _described(self, answer: Any) -> DeclaredRange:  # noqa: ANN401
        """Return what an answer to a request for the first bytes declares, of an empty file or the whole one, too."""
        tag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
        beyond = answer.status == _BEYOND and _EMPTY.fullmatch(answer.headers.get("Content-Range", "").strip())
        if answer.status != _WHOLE and not beyond:
            return self._declared(answer)
        total = 0 if beyond else answer.content_length
        return DeclaredRange(begin=0, end=total or 0, total=total, tag=tag, modified=modified)


def _parsed(store: Any, url: Url) -> Any:  # noqa: ANN401 - yarl's URL
    try:
        address = store.encode_url(url.address)
        valid = bool(address.host) and address.port is not None
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{quoted(str(url))} is not a valid URL", hint="https://HOST/PATH")
    return address


def _headers(begin: int, end: int) -> Mapping[str, str]:
    return {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}


def _check_range(declared: DeclaredRange, begin: int, end: int) -> None:
    if (declared.begin, declared.end) != (begin, end):
        sent = f"bytes {declared.begin:,} to {declared.end - 1:,}"
        raise wrong_answer(f"the server sent {sent} instead of bytes {begin:,} to {end - 1:,}")


def _refused(reason: str) -> StoreError:
    return StoreError(StoreFailure(kind=FailureKind.REFUSED, reason=reason, hint="download the file first"))


def _replaced() -> StoreError:
    return StoreError(StoreFailure(kind=FailureKind.REPLACED, reason="the file is no longer the same"))
