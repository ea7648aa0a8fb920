"""Uploads to stores: what streamed and spooled uploads have in common, small files, and errors."""

from __future__ import annotations

from ema_cli.errors import EmaAvgError, OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.failures import writing_error
from ema_cli.storage.remote.stores import store_of
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

    def write(self, data: bytes) -> None:
        """Keep the contents until ``publish``."""
        self._data = data

    def publish(self) -> None:
        """Send the file."""
        with Uploading(self._url):
            store, path = store_of(self._url)
            store.pipe_file(path, self._data)

    def discard(self) -> None:
        """Do nothing: before ``publish`` nothing was sent."""


def check_sent(url: Url, nbytes: int) -> None:
    """Ask the store for the size of a file that was sent.

    Raises:
        OutputError: the size is wrong, or the store does not report it.

    """
    with Uploading(url):
        store, path = store_of(url)
        store.invalidate_cache()
        size = store.info(path)["size"]
    if size != nbytes:
        raise OutputError(f"{quoted(str(url))} has {size:,} bytes, but {nbytes:,} were sent")


class Uploading:
    """A context in which ``url`` is written: an error of the store in it becomes an ``OutputError`` that names the URL.

    Every store has errors of its own, so every exception that is not an ``EmaAvgError`` counts.
    """

    def __init__(self, url: Url) -> None:
        self._url = url

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, EmaAvgError):
            raise writing_error(error, self._url) from error
