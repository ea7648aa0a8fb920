"""What all outputs in stores have in common: small objects, the check of what arrived, and how failures are told."""

from __future__ import annotations

from typing import NoReturn

from ema_cli.errors import EmaAvgError, OutputError
from ema_cli.storage.remote.stores import is_forbidden, login, reason_of, store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted


class SmallObject:
    """A small object that is sent whole, when it is published."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._data = b""

    def write(self, data: bytes) -> None:
        """Keep what is to be sent."""
        self._data = data

    def publish(self) -> None:
        """Send it.

        Raises:
            OutputError: the store does not take it.

        """
        try:
            store, path = store_of(self._url)
            store.pipe_file(path, self._data)
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            raise_upload_error(self._url, error)

    def discard(self) -> None:
        """Nothing was sent."""


def check_sent(url: Url, nbytes: int) -> None:
    """Ask the store for the size of what was sent.

    Raises:
        OutputError: it is another one, or the store does not say.

    """
    try:
        store, path = store_of(url)
        store.invalidate_cache()
        size = store.info(path)["size"]
    except Exception as error:  # noqa: BLE001
        raise_upload_error(url, error)
    if size != nbytes:
        raise OutputError(f"{quoted(str(url))} has {size:,} bytes, {nbytes:,} were sent")


def raise_upload_error(url: Url, error: Exception) -> NoReturn:
    """Raise ``OutputError`` for what a store says."""
    if isinstance(error, EmaAvgError):
        raise error
    hint = login(url) if is_forbidden(error) else ""
    raise OutputError(f"{quoted(str(url))} cannot be written: {reason_of(error, url)}", hint=hint) from error
