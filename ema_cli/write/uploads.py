"""Uploads to stores: what streamed and spooled uploads have in common, small files, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ema_cli.errors import EmaAvgError, OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.failures import writing_error
from ema_cli.storage.remote.stores import calling, info_of, store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.target import Target


class Upload(Target):
    """A file of known size that is sent to a store."""

    def __init__(self, url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> None:
        self.url = url
        self.planned = planned
        self.role = role

    def _describe(self, sha256: str) -> Written:
        file = WrittenFile(name=self.url.name, role=self.role, nbytes=self.planned.nbytes, sha256=sha256, modified_ns=0)
        return Written(files=(file,))


class SmallUpload:
    """A small file, such as a report, that is sent whole when it is published; see ``SmallTarget``."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._data = b""

    def write(self, *pieces: bytes) -> None:
        """Keep the contents until ``publish``."""
        self._data = b"".join(pieces)

    def publish(self) -> None:
        """Send the file."""
        with uploading(self._url):
            store, path = store_of(self._url)
            store.pipe_file(path, self._data)

    def keep(self) -> None:
        """Do nothing: before ``publish`` nothing was sent."""

    def discard(self) -> None:
        """Do nothing: before ``publish`` nothing was sent."""


def check_sent(url: Url, nbytes: int) -> None:
    """Ask the store for the size of a file that was sent.

    Raises:
        OutputError: the size is wrong, or the store does not report it.

    """
    store, path = store_of(url)
    try:
        info = info_of(store, path, url)
    except EmaAvgError as error:
        message = f"{quoted(str(url))} was sent, but could not be checked: {error.message}"
        raise OutputError(message, hint=error.hint) from error
    if info is None:
        raise OutputError(f"{quoted(str(url))} was sent, but is not there")
    if info.get("size") != nbytes:
        raise OutputError(f"{quoted(str(url))} has {info.get('size', 0):,} bytes, but {nbytes:,} were sent")


@contextmanager
def uploading(url: Url) -> Iterator[None]:
    """Begin to write ``url``: an error of the store becomes an ``OutputError`` that names the URL.

    Every store has errors of its own, so every exception that is not an ``EmaAvgError`` counts.
    """
    try:
        with calling(url):
            yield
    except (EmaAvgError, MemoryError):
        raise
    except Exception as error:
        raise writing_error(error, url) from error
