"""Uploads to stores: what streamed and spooled uploads have in common, small files, and errors."""

from __future__ import annotations

from typing import NoReturn

from ema_cli.errors import EmaAvgError, OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.stores import is_forbidden, login, reason_of, store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.target import Target


class Upload(Target):
    """A file of known size that is sent to a store.

    Args:
        url: of the file.
        planned: its header and size.
        role: of the file in its output.

    """

    def __init__(self, url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> None:
        self.url = url
        self.planned = planned
        self.role = role

    def _describe(self, sha256: str) -> Written:
        return Written(
            files=(
                WrittenFile(
                    name=self.url.name, role=self.role, nbytes=self.planned.nbytes, sha256=sha256, modified_ns=0
                ),
            )
        )


class SmallUpload:
    """A small file, such as a report, that is sent whole when it is published; see ``SmallTarget``."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._data = b""

    def write(self, data: bytes) -> None:
        """Keep the contents until ``publish``."""
        self._data = data

    def publish(self) -> None:
        """Send the file.

        Raises:
            OutputError: the store does not accept it.

        """
        try:
            store, path = store_of(self._url)
            store.pipe_file(path, self._data)
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            raise_upload_error(self._url, error)

    def discard(self) -> None:
        """Do nothing: before ``publish`` nothing was sent."""


def check_sent(url: Url, nbytes: int) -> None:
    """Ask the store for the size of a file that was sent.

    Raises:
        OutputError: the size is wrong, or the store does not report it.

    """
    try:
        store, path = store_of(url)
        store.invalidate_cache()
        size = store.info(path)["size"]
    except Exception as error:  # noqa: BLE001
        raise_upload_error(url, error)
    if size != nbytes:
        raise OutputError(f"{quoted(str(url))} has {size:,} bytes, but {nbytes:,} were sent")


def raise_upload_error(url: Url, error: Exception) -> NoReturn:
    """Raise ``OutputError`` for an error of a store."""
    if isinstance(error, EmaAvgError):
        raise error
    hint = login(url) if is_forbidden(error) else ""
    raise OutputError(f"{quoted(str(url))} cannot be written: {reason_of(error, url)}", hint=hint) from error
