"""The stores of fsspec: how they are opened and queried, and retries."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ema_cli.errors import InputRefused, UsageError
from ema_cli.storage.protocols import split_protocol
from ema_cli.storage.remote.failures import is_forbidden, is_missing, is_replaced, login, reason_of
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
_PACKAGES = dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
"""The package with the library for a scheme, where no extra of this package has it."""
_LOGGERS = ("fsspec", "gcsfs", "s3fs")
"""Libraries that log the errors that they raise; without a handler these would go to the terminal, with a traceback."""
_STORES: dict[str, Any] = {}
"""By scheme and bucket or host."""
_LOCK = threading.Lock()


def store_of(url: Url) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path there.

    Raises:
        UsageError: the protocol is not allowed, or its library is not installed.

    """
    if split_protocol(url.address)[0] in ("", "file"):
        raise UsageError(f"{quoted(str(url))} is not a URL of a store")
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
    except (ImportError, ValueError) as error:
        if not isinstance(error, ImportError) and not str(error).startswith("Protocol not known"):
            raise UsageError(f"{quoted(str(url))} is not in a store that fsspec supports: {error}") from error
        extra = _LIBRARIES.get(url.scheme)
        package = f"'ema-avg[{extra}]'" if extra else _PACKAGES.get(url.scheme)
        hint = f"pip install {package}" if package else ""
        raise UsageError(f"{url.scheme}:// needs a library that is not installed: {error}", hint=hint) from error
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
