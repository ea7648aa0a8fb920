"""Uploads to stores: what streamed and spooled uploads have in common, small files, and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn

from ema_cli.errors import EmaAvgError, OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.stores import is_forbidden, login, reason_of, store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted


class Upload(ABC):
    """A file of known size that is sent to a store and gets its name when it is complete; see ``Target``.

    Args:
        url: of the file.
        planned: its header and size.
        role: of the file in its output.

    """

    def __init__(self, url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> None:
        self.url = url
        self.planned = planned
        self.role = role

    @abstractmethod
    def open(self) -> None:
        """Begin, and take the header. Arrange for ``discard`` first."""

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Take ``data`` at byte ``offset`` of the data section; safe to call from several threads."""

    @abstractmethod
    def finish(self) -> Written:
        """Complete the file; its name does not exist yet."""

    @abstractmethod
    def publish(self) -> None:
        """Give the file its name, and check its size in the store."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the file; does nothing after ``publish``."""

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
