"""The stores of fsspec: how they are opened and queried, the meaning of their errors, and retries."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ema_cli.errors import InputRefused, UsageError
from ema_cli.storage.url import Url
from ema_cli.text import quoted

Answer = TypeVar("Answer")
RETRY_DELAY_SECONDS = 0.2
"""Delay before the second try, doubled before each further try, and varied by half. Tests set it to 0."""
_TRIES = 5
_TRIES_OF_PATIENT = {"gs": 2, "gcs": 2, "hf": 2}
"""Tries for stores with libraries that retry on their own, for half a minute."""
_LIBRARIES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
"""The extra of this package with the library for a scheme."""
_LOGGERS = ("fsspec", "gcsfs", "s3fs")
"""Libraries that log the errors that they raise; without a handler these would go to the terminal, with a traceback."""
_LOGINS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login",
    "hf": "hf auth login, or set HF_TOKEN",
}
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _PRECONDITION = 401, 403, 404, 412
_LONGEST_REASON = 300
_STORES: dict[str, Any] = {}
"""By scheme and bucket or host."""
_LOCK = threading.Lock()


def store_of(url: Url) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path there.

    Raises:
        UsageError: the store is unknown, or its library is not installed.

    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only where something is remote

    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    root = "/".join(url.address.split("/")[:3])
    try:
        with _LOCK:  # fsspec would create one per thread, each with its own connections and credentials
            if root not in _STORES:
                _STORES[root] = url_to_fs(url.address, use_listings_cache=False)[0]
            store = _STORES[root]
        path = store._strip_protocol(url.address)  # noqa: SLF001 - as url_to_fs does
    except ImportError as error:
        extra = _LIBRARIES.get(url.scheme)
        hint = f"pip install 'ema-avg[{extra}]'" if extra else ""
        raise UsageError(f"{url.scheme}:// needs a library that is not installed: {error}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{quoted(str(url))} is not in a store that fsspec supports: {error}") from error
    return store, str(path)


def info_of(store: Any, path: str, url: Url) -> dict[str, Any] | None:  # noqa: ANN401 - fsspec has no types
    """Return a store's description of an object or a folder; ``None`` if it does not exist.

    Raises:
        InputRefused: it cannot be read, or the store cannot be reached.

    """

    def ask() -> dict[str, Any]:
        store.invalidate_cache()
        return dict(store.info(path))

    try:
        return retry(ask, url)
    except Exception as error:
        if is_missing(error):
            return None
        verb, hint = ("read", login(url)) if is_forbidden(error) else ("reached", "")
        raise InputRefused(f"{quoted(str(url))} cannot be {verb}: {reason_of(error, url)}", hint=hint) from error


def retry(ask: Callable[[], Answer], url: Url, *, until: Callable[[], bool] = lambda: False) -> Answer:
    """Return the answer of a store; retry after errors that may pass, such as a busy server or a lost connection.

    ``until`` returns whether to stop retrying.
    """
    tries = _TRIES_OF_PATIENT.get(url.scheme, _TRIES)
    for attempt in range(tries):
        try:
            return ask()
        except Exception as error:
            if attempt + 1 == tries or until() or is_missing(error) or is_forbidden(error) or is_replaced(error):
                raise
        delay = RETRY_DELAY_SECONDS * 2**attempt
        time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - so that threads do not retry together
    raise AssertionError("the last try returns or raises")


def is_missing(error: Exception) -> bool:
    """Whether a store reports that the object does not exist."""
    return isinstance(error, FileNotFoundError) or _status(error) == _NOT_FOUND


def is_forbidden(error: Exception) -> bool:
    """Whether a store requires a login, or denies access."""
    no_login = {kind.__name__ for kind in type(error).__mro__} & {"NoCredentialsError", "LocalTokenNotFoundError"}
    by_gcsfs = isinstance(error, OSError) and str(error).startswith("Forbidden")
    denied = isinstance(error, PermissionError) or _status(error) in (_UNAUTHORIZED, _FORBIDDEN)
    return bool(no_login) or by_gcsfs or denied


def is_replaced(error: Exception) -> bool:
    """Whether a store reports that the object was replaced."""
    return _status(error) == _PRECONDITION


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error; every library stores it differently."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    if response is not None:  # huggingface_hub
        return _number(getattr(response, "status_code", None))
    if hasattr(error, "status"):  # aiohttp
        return _number(error.status)
    return _number(getattr(error, "code", None))  # gcsfs


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None


def reason_of(error: Exception, url: Url) -> str:
    """Return the text of an error on one line, without secrets in the address."""
    text = str(error)
    if hasattr(error, "request_info"):  # aiohttp; its text has the whole address
        text = f"{_status(error)} {getattr(error, 'message', '')}"
    text = " ".join(text.replace(url.address, str(url)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def login(url: Url) -> str:
    """Return how to log in to a store; empty if that is unknown."""
    return _LOGINS.get({"s3a": "s3", "gcs": "gs"}.get(url.scheme, url.scheme), "")
