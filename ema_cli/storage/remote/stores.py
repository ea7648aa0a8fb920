"""The stores of fsspec: how they are opened and queried."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ema_cli.errors import NothingMatched, UsageError
from ema_cli.storage.protocols import split_protocol
from ema_cli.storage.remote.httpx_answers import watch_hub
from ema_cli.storage.remote.limits import CALL_SECONDS, STALL_SECONDS, allowed
from ema_cli.storage.remote.retries import read_or_raise
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.store_options import limit_tries, options_for, silence
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_LIBRARIES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}
"""The package that fsspec needs for a scheme."""
_STORES: dict[str, Any] = {}
"""By scheme and bucket or host."""
_LOCK = threading.Lock()
_NONSENSE = (AttributeError, IndexError, KeyError, TypeError, RecursionError)
"""What libraries raise if a document is not what they expect."""


def store_of(url: Url) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path there.

    Raises:
        UsageError: the protocol is not allowed, or its library is not installed.

    """
    if split_protocol(url.address)[0] in ("", "file"):
        raise UsageError(f"{quoted(str(url))} is not a URL of a store")
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only where something is remote

    root = "/".join(url.address.split("/")[:3])
    try:
        with _LOCK:  # fsspec would create one per thread, each with its own connections and credentials
            if root not in _STORES:
                made = url_to_fs(url.address, use_listings_cache=False, **options_for(url.scheme))[0]
                limit_tries(made, url.scheme)
                silence(getattr(made, "loop", None))
                _STORES[root] = made
            store = _STORES[root]
        path = store._strip_protocol(url.address)  # noqa: SLF001 - as url_to_fs does
    except (ImportError, ValueError) as error:
        if not isinstance(error, ImportError) and not str(error).startswith("Protocol not known"):
            raise UsageError(f"{quoted(str(url))} is not in a store that fsspec supports: {error}") from error
        hint = f"pip install {_LIBRARIES[url.scheme]}" if url.scheme in _LIBRARIES else ""
        raise UsageError(f"{url.scheme}:// needs a library that is not installed: {error}", hint=hint) from error
    return store, str(path)


@contextmanager
def calling(url: Url, *, seconds: float | None = None, tag: str | None = None) -> Iterator[None]:
    """Begin a call of the library of a store, within the limits; see ``limits.allowed``."""
    if url.scheme == "hf":
        watch_hub()
    try:
        with allowed(seconds=seconds, tag=tag):
            yield
    except TimeoutError as error:
        if str(error):
            raise
        reason = f"the server sent nothing for {STALL_SECONDS:.0f} seconds"
        raise StoreError(StoreFailure(kind=FailureKind.UNREACHABLE, reason=reason, hint="run again later")) from error
    except _NONSENSE as error:
        reason = f"the answer of the server makes no sense to the library: {type(error).__name__}: {error}"
        raise StoreError(StoreFailure(kind=FailureKind.FAILING, reason=reason, hint="run again later")) from error


def info_of(store: Any, path: str, url: Url) -> dict[str, Any] | None:  # noqa: ANN401 - fsspec has no types
    """Return a store's description of an object or a folder; ``None`` if it does not exist.

    Raises:
        InputRefused: access is denied.
        InputChanged: the store is failing, or cannot be reached.

    """

    def ask() -> dict[str, Any]:
        with calling(url, seconds=CALL_SECONDS):
            store.invalidate_cache()
            return dict(store.info(path))

    try:
        return read_or_raise(ask, url)
    except NothingMatched:
        return None
