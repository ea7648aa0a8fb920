"""What the errors of stores and their libraries mean. Every library stores the status of an answer differently."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus

from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.url import Url
from ema_cli.text import HIDDEN, safe_text, without_secrets

_LOGINS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login",
    "hf": "hf auth login, or set HF_TOKEN",
    "http": "give a user and a password, or a signature that is still valid, in the URL",
}
_SAME_LOGIN = {"s3a": "s3", "gcs": "gs", "https": "http"}
_KIND_BY_STATUS: dict[int, FailureKind] = {
    HTTPStatus.UNAUTHORIZED: FailureKind.DENIED,
    HTTPStatus.FORBIDDEN: FailureKind.DENIED,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: FailureKind.DENIED,
    HTTPStatus.NOT_FOUND: FailureKind.MISSING,
    HTTPStatus.GONE: FailureKind.MISSING,
    HTTPStatus.REQUEST_TIMEOUT: FailureKind.FAILING,
    HTTPStatus.PRECONDITION_FAILED: FailureKind.REPLACED,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.BUSY,
    HTTPStatus.SERVICE_UNAVAILABLE: FailureKind.BUSY,
}
_KIND_BY_NAME = {
    "NoCredentialsError": FailureKind.DENIED,
    "PartialCredentialsError": FailureKind.DENIED,
    "ProfileNotFound": FailureKind.DENIED,
    "LocalTokenNotFoundError": FailureKind.DENIED,
    "EndpointConnectionError": FailureKind.UNREACHABLE,
    "HTTPClientError": FailureKind.UNREACHABLE,  # botocore: no connection, a time-out, TLS
    "ClientConnectionError": FailureKind.UNREACHABLE,  # aiohttp
    "TransportError": FailureKind.UNREACHABLE,  # httpx
    "ParamValidationError": FailureKind.REFUSED,  # botocore: no such name can exist
    "HFValidationError": FailureKind.REFUSED,
    "ClientPayloadError": FailureKind.FAILING,  # aiohttp: an answer without its end
}
"""By the name of a class of the error or of one above it, as the libraries may not be installed."""
_KIND_BY_CLASS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], FailureKind], ...] = (
    (FileNotFoundError, FailureKind.MISSING),
    (PermissionError, FailureKind.DENIED),
    ((ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError), FailureKind.UNREACHABLE),
)
_LONGEST_REASON = 300
_MOST_CAUSES = 5
_RETRY_LATER = "run again later"


def failure_of(error: BaseException, url: Url) -> StoreFailure:
    """Return what an error of a store means."""
    if isinstance(error, StoreError):
        return error.failure
    for one in _with_causes(error):
        kind = _kind_of(one)
        if kind is not None:
            reason = reason_of(error, url) if one is error else f"{reason_of(error, url)} {reason_of(one, url)}"
            return StoreFailure(kind=kind, reason=reason, hint=hint_for(kind, url))
    return StoreFailure(kind=FailureKind.FAILING, reason=reason_of(error, url), hint=_RETRY_LATER)


def status_kind(status: int) -> FailureKind:
    """Return what the HTTP status of an answer that is not the expected one means."""
    refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return _KIND_BY_STATUS.get(status, FailureKind.REFUSED if refused else FailureKind.FAILING)


def status_words(status: int) -> str:
    """Return an HTTP status with its standard words; what the server calls it is not trusted."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def hint_for(kind: FailureKind, url: Url) -> str:
    """Return what to do about a failure; empty if that is unknown."""
    if kind is FailureKind.DENIED:
        return _LOGINS.get(_SAME_LOGIN.get(url.scheme, url.scheme), "")
    return _RETRY_LATER if kind in (FailureKind.BUSY, FailureKind.FAILING, FailureKind.UNREACHABLE) else ""


def reason_of(error: BaseException, url: Url) -> str:
    """Return the text of an error on one line, printable, without secrets."""
    text = str(error).replace(url.address, str(url))
    for secret in url.secrets:  # a library may show a part of the address alone
        text = text.replace(secret, HIDDEN)
    text = without_secrets(text)
    return safe_text(" ".join(text.split()) or type(error).__name__, limit=_LONGEST_REASON)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: some libraries raise errors of their own from those with the status."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _kind_of(error: BaseException) -> FailureKind | None:
    """Return the kind of one error; ``None`` if it tells nothing."""
    status = _status(error)
    if status is not None:
        return status_kind(status)
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs
        return FailureKind.DENIED
    by_class = (kind for classes, kind in _KIND_BY_CLASS if isinstance(error, classes))
    by_name = (_KIND_BY_NAME[one.__name__] for one in type(error).__mro__ if one.__name__ in _KIND_BY_NAME)
    return next(by_class, None) or next(by_name, None)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    if response is not None:  # huggingface_hub
        return _number(getattr(response, "status_code", None))
    if _is_no_http(error) or _is_no_http(error.__cause__):
        return None  # aiohttp calls it a status of 400
    if hasattr(error, "status"):  # aiohttp
        return _number(error.status)
    return _number(getattr(error, "code", None))  # gcsfs


def _is_no_http(error: BaseException | None) -> bool:
    """Whether aiohttp cannot read an answer."""
    return any(one.__name__ == "HttpProcessingError" for one in type(error).__mro__)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None
