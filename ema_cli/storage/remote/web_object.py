"""A file on a web server, read by ranges.

One request tells whether the file exists, its size, and whether the server supports ranges, and has its first bytes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.web_answer import PARTIAL, DeclaredRange, declared_range, read_body, wrong_answer
from ema_cli.storage.remote.web_client import Answer, WebClient, client_of
from ema_cli.storage.remote.web_failures import request_error, status_error
from ema_cli.storage.url import Url

_WHOLE, _BEYOND = 200, 416
_NO_HEADERS: Mapping[str, str] = {}
_EMPTY = re.compile(r"bytes[ =]\*/0+", re.ASCII)


class WebObject:
    """A file on a web server, as it was when it was opened.

    Args:
        url: of the file.
        head_bytes: how many of the first bytes to request.
        client: asks for it; that of the server if none is given.
        address: where to request the file if not at ``url``.

    Raises:
        UsageError: the URL or the settings of the user are not valid, or a library is not installed.
        StoreError: the file does not exist, its server does not support ranges, or fails.

    """

    def __init__(
        self, url: Url, head_bytes: int, *, client: WebClient | None = None, address: Url | None = None
    ) -> None:
        self.url, self._client = url, client or client_of(url)
        self.address = address or url
        """Where it is requested. May be replaced by another address of the same file."""
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
        self._closed = threading.Event()
        self._client.enter()
        try:
            self._open(head_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> dict[str, Any]:
        """Size and entity tag, as fsspec describes a file."""
        return {"size": self.size, "ETag": self.tag}

    def read(self, begin: int, end: int) -> list[bytes | bytearray]:
        """Return the bytes from ``begin`` to before ``end``, in pieces.

        Raises:
            StoreError: the server fails, does not send exactly that, or the file was changed.

        """
        tagged = {"If-Match": self.tag} if self.tag is not None and self._is_strong else {}
        with self._get(begin, end, tagged) as answer:
            if answer.response.status == _BEYOND:
                raise _replaced()
            declared = self._declared(answer)
            if declared.total not in (None, self.size) or (self.tag and declared.tag not in (None, self.tag)):
                raise _replaced()
            self._proven &= declared.tag == self.tag
            _check_range(declared, begin, end)
            return read_body(answer, end - begin, self._client.wait_on)

    def raise_if_changed(self) -> None:
        """Ask for the file again, unless every answer has shown that it is of the same version.

        Raises:
            StoreError: it was changed or removed, or the server fails.

        """
        if not self._proven:
            self._compare()

    def close(self) -> None:
        """Cancel the requests that are still waiting for an answer."""
        if not self._closed.is_set():
            self._closed.set()
            self._client.leave()

    @contextmanager
    def _get(self, begin: int, end: int, headers: Mapping[str, str] = _NO_HEADERS) -> Iterator[Answer]:
        """Request a range; the errors are those of this module's functions."""
        ranged = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity", **headers}
        address = self._client.parse(self.address)
        try:
            with self._client.get(address, ranged, self._closed) as answer:
                yield answer
        except MemoryError:
            raise
        except Exception as error:
            raise request_error(error, self.url) from error

    def _open(self, head_bytes: int) -> None:
        with self._get(0, head_bytes) as answer:
            declared = self._described(answer)
            if answer.response.status == _WHOLE and declared.total != 0:
                raise _refused("the server does not support byte ranges")
            if declared.total is None:
                raise _refused("it is not a file of known size")
            end = min(head_bytes, declared.total)
            _check_range(declared, 0, end)
            self.head = b"".join(read_body(answer, end, self._client.wait_on)) if end else b""
        self.size, self.tag, self.modified = declared.total, declared.tag, declared.modified
        self._proven = self._is_strong

    def _compare(self) -> None:
        with self._get(0, 1) as answer:
            declared = self._described(answer)
            # With a tag, copies of the file on several servers may have other times.
            same_time = self.tag is not None or declared.modified == self.modified
            if declared.total not in (None, self.size) or declared.tag != self.tag or not same_time:
                raise _replaced()
            if answer.response.status == PARTIAL:
                read_body(answer, 1, self._client.wait_on)  # so that the connection can be used again

    @property
    def _is_strong(self) -> bool:
        """Whether equal entity tags mean equal bytes."""
        return self.tag is not None and self.tag.startswith('"')

    def _declared(self, answer: Answer) -> DeclaredRange:
        if answer.response.status not in (_WHOLE, PARTIAL):
            raise status_error(answer, self.url, self._client.parse(self.address).host)
        return declared_range(answer.response)

    def _described(self, answer: Answer) -> DeclaredRange:
        """Return what an answer to a request for the first bytes declares, of an empty file or the whole one, too."""
        status, headers = answer.response.status, answer.response.headers
        beyond = status == _BEYOND and _EMPTY.fullmatch(headers.get("Content-Range", "").strip())
        if status != _WHOLE and not beyond:
            return self._declared(answer)
        total = 0 if beyond else answer.response.length
        tag, modified = headers.get("ETag"), headers.get("Last-Modified")
        return DeclaredRange(begin=0, end=total or 0, total=total, tag=tag, modified=modified)


def _check_range(declared: DeclaredRange, begin: int, end: int) -> None:
    if (declared.begin, declared.end) != (begin, end):
        sent = f"bytes {declared.begin:,} to {declared.end - 1:,}"
        raise wrong_answer(f"the server sent {sent} instead of bytes {begin:,} to {end - 1:,}")


def _refused(reason: str) -> StoreError:
    return StoreError(StoreFailure(kind=FailureKind.REFUSED, reason=reason, hint="download the file first"))


def _replaced() -> StoreError:
    return StoreError(StoreFailure(kind=FailureKind.REPLACED, reason="the file is no longer the same"))
