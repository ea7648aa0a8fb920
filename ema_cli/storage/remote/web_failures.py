"""What the errors of requests to web servers mean, in words. What a server sends is shown only as escaped text."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead

from ema_cli.storage.remote.failure_causes import hint_for, status_kind, status_words
from ema_cli.storage.remote.retries import LONGEST_WAIT_SECONDS
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.web_client import Answer
from ema_cli.storage.remote.web_connection import ConnectError, ProxyError
from ema_cli.storage.url import Url
from ema_cli.text import quoted, safe_text

_LONGEST_DETAIL = 80
_CHECK_NETWORK = "check the address and the network, or run again later"


def status_error(answer: Answer, url: Url, host: str) -> StoreError:
    """Return the error for an answer with an unexpected status; ``host`` is the one that the user named."""
    status = answer.response.status
    kind, hint, wait = status_kind(status), hint_for(status_kind(status), url), 0.0
    server = "the server" if answer.host == host else f"the server {quoted(answer.host)}, after a redirect,"
    reason = f"{server} answered {status_words(status)}"
    if kind in (FailureKind.BUSY, FailureKind.FAILING):
        wait = _asked_wait(answer.response.headers.get("Retry-After", ""))
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
    if isinstance(error, ConnectError):
        return StoreError(_failed_secure(error) if error.is_secure else _failed_connection(error))
    if isinstance(error, ProxyError):
        kind = status_kind(error.status)
        reason = f"the proxy answered {status_words(error.status)}"
        return StoreError(StoreFailure(kind=kind, reason=reason, hint="check the settings of the proxy"))
    return StoreError(_failed_answer(error, url))


def _failed_secure(error: ConnectError) -> StoreFailure:
    """Return the failure if there was no agreement on TLS."""
    if isinstance(error.cause, ssl.SSLCertVerificationError):
        detail = getattr(error.cause, "verify_message", "") or str(error.cause)
        reason = f"the certificate of {quoted(error.host)} is not valid: {_detail(detail)}"
        hint = "check the address and the clock; SSL_CERT_FILE=FILE names a file with further authorities"
    else:
        detail = getattr(error.cause, "reason", "") or "no TLS"
        reason = f"there is no secure connection to {quoted(error.host)}: {_detail(detail.lower().replace('_', ' '))}"
        hint = "is it http:// ?"
    return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint=hint, is_final=True)


def _failed_connection(error: ConnectError) -> StoreFailure:
    """Return the failure if there was no connection."""
    cause = error.cause
    if cause is None or (isinstance(cause, TimeoutError) and not cause.errno):
        reason = f"there is no connection within {error.limit:g} s"
    elif isinstance(cause, socket.gaierror):
        reason = f"there is no address of {quoted(error.host)}: {cause.strerror}"
    else:
        reason = f"there is no connection to {quoted(f'{error.host}:{error.port}')}: {_system_text(cause)}"
    return StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint=_CHECK_NETWORK)


def _failed_answer(error: Exception, url: Url) -> StoreFailure:
    """Return the failure if there was a connection."""
    kind = FailureKind.FAILING
    if isinstance(error, IncompleteRead):
        reason = "the answer broke off"
    elif isinstance(error, OSError):
        reason = "the connection was lost"
    elif isinstance(error, HTTPException):
        reason = f"the answer is not valid HTTP: {_detail(str(error))}"
    else:
        reason = f"the request failed: {type(error).__name__}"
    return StoreFailure(kind=kind, reason=reason, hint=hint_for(kind, url))


def _system_text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else _detail(str(error))


def _detail(text: str) -> str:
    """Return what may contain text from a server: its first line, escaped and short."""
    lines = [line.strip(" :") for line in text.splitlines() if line.strip()]
    return safe_text(lines[0] if lines else "no reason", limit=_LONGEST_DETAIL)
