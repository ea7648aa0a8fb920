"""An output in a store that takes no upload in parts: put together in a temporary file, and sent when it is whole.

The file has no name on the disk, so a run that is killed leaves nothing of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from io import BufferedRandom

import numpy as np
from numpy.typing import NDArray

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.file import check_space
from ema_cli.write.temp_names import random_name
from ema_cli.write.uploads import check_sent, raise_upload_error


class SpooledObject:
    """An object that is sent whole.

    Args:
        url: of the object.
        planned: what it holds.

    """

    def __init__(self, url: Url, planned: PlannedFile) -> None:
        self.url = url
        self.planned = planned
        self._file: BufferedRandom | None = None
        self._missing = planned.data_bytes
        self._lock = threading.Lock()

    @property
    def file(self) -> BufferedRandom:
        """What is sent."""
        assert self._file is not None, "open comes first"  # noqa: S101
        return self._file

    def open(self) -> None:
        """Make the temporary file. Arrange for ``discard`` before.

        Raises:
            OutputError: there is no space for it, or the store is not known.

        """
        store_of(self.url)
        try:
            self._file = tempfile.TemporaryFile(prefix="ema-avg-")  # noqa: SIM115 - closed by discard
            check_space(os.fstatvfs(self.file.fileno()), self.planned.nbytes)
            self._place(0, self.planned.header)
        except OSError as error:
            raise_upload_error(self.url, error)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Place ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        try:
            self._place(len(self.planned.header) + offset, data.data)
        except OSError as error:
            raise_upload_error(self.url, error)
        with self._lock:
            self._missing -= len(data)

    def _place(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            count = os.pwrite(self.file.fileno(), view, offset)
            offset, view = offset + count, view[count:]

    def finish(self) -> Written:
        """Return what is in the file, as it reads back.

        Raises:
            OutputError: some of it is missing.

        """
        if self._missing:
            raise OutputError(f"{self._missing:,} bytes of {quoted(str(self.url))} were not written")
        self.file.seek(0)
        sha256 = hashlib.file_digest(self.file, "sha256").hexdigest()
        whole = WrittenFile(
            name=self.url.name, role=FileRole.WEIGHTS, nbytes=self.planned.nbytes, sha256=sha256, modified_ns=0
        )
        return Written(files=(whole,))

    def publish(self) -> None:
        """Send the file.

        Raises:
            OutputError: the store did not take it.

        """
        if self.url.scheme == "hf":
            send_together([self], [])
            return
        try:
            _send(self)
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            raise_upload_error(self.url, error)
        check_sent(self.url, self.planned.nbytes)

    def discard(self) -> None:
        """Forget the file."""
        if self._file is not None:
            self._file.close()


def send_together(objects: Sequence[SpooledObject], removed: Sequence[Url]) -> None:
    """Send objects to a repository of the Hugging Face Hub and remove others, all in one commit.

    Raises:
        OutputError: it did not take them.

    """
    from ema_cli.write.hub import commit  # noqa: PLC0415 - huggingface_hub

    try:
        commit({one.url: one.file for one in objects}, removed)
    except Exception as error:  # noqa: BLE001
        raise_upload_error(objects[0].url, error)
    for one in objects:
        check_sent(one.url, one.planned.nbytes)


def _send(one: SpooledObject) -> None:
    """Send an object under another name first: a store may show it while it is on the way."""
    store, path = store_of(one.url)
    _, temp = store_of(one.url.with_name(random_name(one.url.name)))
    one.file.seek(0)
    try:
        with store.open(temp, "wb") as upload:
            shutil.copyfileobj(one.file, upload, 1 << 20)
        store.mv(temp, path)
    except BaseException:
        if store.exists(temp):
            store.rm_file(temp)
        raise
