"""The stores of fsspec: how they are opened and queried."""

from __future__ import annotations

import logging
import threading
from typing import Any

from ema_cli.errors import NothingMatched, UsageError
from ema_cli.storage.remote.retries import read_or_raise
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_LIBRARIES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
"""The extra of this package with the library for a scheme."""
_LOGGERS = ("aiohttp", "fsspec", "gcsfs", "s3fs")
"""Libraries that log the errors that they raise; without a handler these would go to the terminal, with a traceback."""
_STORES: dict[tuple[str, ...], Any] = {}
"""By scheme and bucket or host, and whether the addresses are encoded."""
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
    options = {"encoded": True} if url.is_web and url.is_encoded else {}
    try:
        with _LOCK:  # fsspec would create one per thread, each with its own connections and credentials
            if (root, *options) not in _STORES:
                made = url_to_fs(url.address, use_listings_cache=False, **options)[0]
                _silence(getattr(made, "loop", None))
                _STORES[root, *options] = made
            store = _STORES[root, *options]
        path = store._strip_protocol(url.address)  # noqa: SLF001 - as url_to_fs does
    except ImportError as error:
        extra = _LIBRARIES.get(url.scheme)
        hint = f"pip install 'ema-avg[{extra}]'" if extra else ""
        raise UsageError(f"{url.scheme}:// needs a library that is not installed: {error}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{quoted(str(url))} is not in a store that fsspec supports: {error}") from error
    return store, str(path)


def _silence(loop: Any) -> None:  # noqa: ANN401
    """Log what goes wrong in the background in fsspec's event loop, in place of a traceback on the terminal.

    What matters to a request is raised where its answer is awaited.
    """
    if loop is not None:
        loop.set_exception_handler(lambda _, context: logging.getLogger("fsspec").debug("%s", context))


def info_of(store: Any, path: str, url: Url) -> dict[str, Any] | None:  # noqa: ANN401 - fsspec has no types
    """Return a store's description of an object or a folder; ``None`` if it does not exist.

    Raises:
        InputRefused: access is denied.
        InputChanged: the store is failing, or cannot be reached.

    """

    def ask() -> dict[str, Any]:
        store.invalidate_cache()
        return dict(store.info(path))

    try:
        return read_or_raise(ask, url)
    except NothingMatched:
        return None
