"""What the errors of requests to web servers mean, in words. What a server sends is shown only as escaped text."""

from __future__ import annotations

import os
import re
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any

from ema_cli.storage.remote import web_client
from ema_cli.storage.remote.failure_causes import hint_for, status_kind, status_words
from ema_cli.storage.remote.retries import LONGEST_WAIT_SECONDS
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.url import Url
from ema_cli.text import quoted, safe_text

_LONGEST_DETAIL = 80
_CHECK_NETWORK = "check the address and the network, or run again later"


def status_error(answer: Any, url: Url, host: str) -> StoreError:  # noqa: ANN401 - of aiohttp
    """Return the error for an answer with an unexpected status; ``host`` is the one that the user named."""
    kind, hint, wait = status_kind(answer.status), hint_for(status_kind(answer.status), url), 0.0
    server = "the server" if answer.url.host == host else f"the server {quoted(answer.url.host)}, after a redirect,"
    reason = f"{server} answered {status_words(answer.status)}"
    if kind in (FailureKind.BUSY, FailureKind.FAILING):
        wait = _asked_wait(answer.headers.get("Retry-After", ""))
    if wait:
        reason += f" and asks to wait {wait:,.0f} s"
    if wait > LONGEST_WAIT_SECONDS:
        hint = f"run again after that; a run waits for at most {LONGEST_WAIT_SECONDS} s"
    return StoreError(StoreFailure(kind=kind, reason=reason, hint=hint, wait_seconds=wait))


def _asked_wait(text: str) -> float:
    """Return the seconds that the header ``Retry-After`` asks to wait: a number, or a date; 0 if it is neither."""
    if re.fullmatch(r"\d{1,12}", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return 0.0


def request_error(error: Exception, url: Url) -> StoreError:
    """Return the error for a request without an answer, or with one that broke off."""
    if isinstance(error, StoreError):
        return error
    return StoreError(_failed_connection(error) or _failed_answer(error, url))


def _failed_connection(error: Exception) -> StoreFailure | None:
    """Return the failure if there was no connection."""
    import aiohttp  # noqa: PLC0415 - only where something is on the web

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        detail = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        reason = f"the certificate of {quoted(error.host)} is not valid: {_detail(detail)}"
        hint = "check the address and the clock; SSL_CERT_FILE=FILE names a file with further authorities"
        return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint=hint, is_final=True)
    if isinstance(error, aiohttp.ClientSSLError):
        detail = getattr(error.os_error, "reason", "") or "no TLS"
        reason = f"there is no secure connection to {quoted(error.host)}: {_detail(detail.lower().replace('_', ' '))}"
        return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint="is it http:// ?", is_final=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        place = quoted(f"{error.host}:{error.port}")
        if isinstance(error.os_error, socket.gaierror):
            reason = f"there is no address of {quoted(error.host)}: {error.os_error.strerror}"
        else:
            reason = f"there is no connection to {place}: {_system_text(error.os_error)}"
        return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint=_CHECK_NETWORK)
    if isinstance(error, aiohttp.ServerTimeoutError):
        reason = f"there is no connection within {web_client.CONNECT_SECONDS:g} s"
        return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint=_CHECK_NETWORK)
    return None


def _failed_answer(error: Exception, url: Url) -> StoreFailure:
    """Return the failure if there was a connection."""
    import aiohttp  # noqa: PLC0415

    kind = FailureKind.FAILING
    if isinstance(error, TimeoutError):
        kind, reason = FailureKind.UNREACHABLE, f"no answer began within {web_client.ANSWER_SECONDS:g} s"
    elif isinstance(error, aiohttp.ClientResponseError):
        reason = f"the answer is not valid HTTP: {_detail(error.message)}"
    elif isinstance(error, aiohttp.ClientPayloadError):
        reason = "the answer broke off"
    elif isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        reason = "the connection was lost"
    else:
        reason = f"the request failed: {type(error).__name__}"
    return StoreFailure(kind=kind, reason=reason, hint=hint_for(kind, url))


def _system_text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else _detail(str(error))


def _detail(text: str) -> str:
    """Return what may contain text from a server: its first line, escaped and short."""
    lines = [line.strip(" :") for line in text.splitlines() if line.strip()]
    return safe_text(lines[0] if lines else "no reason", limit=_LONGEST_DETAIL)
