"""An output in a remote store: sent in order, in parts, while it is computed, without a copy on the disk.

The store shows an object when its upload is completed, which is the last thing that happens; one that is broken off
leaves nothing. There is no lock: of two runs on one name the later wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.write.uploads import check_sent, raise_upload_error

_PART_BYTES = 1 << 23
_MOST_PARTS = 9_000
"""Of an upload; S3 takes 10,000."""


class RemoteObject:
    """An object that appears under its name when it is whole.

    Args:
        url: of the object.
        planned: what it holds.

    """

    def __init__(self, url: Url, planned: PlannedFile) -> None:
        self.url = url
        self._planned = planned
        self._upload: Any = None
        self._digest = hashlib.sha256()
        self._sent = 0
        """Bytes of the data section that were handed to the upload."""
        self._waiting: dict[int, bytes] = {}
        """Pieces out of turn: at most one per thread, as those before them are being sent."""
        self._lock = threading.Lock()
        self._published = False

    def open(self) -> None:
        """Begin the upload. Arrange for ``discard`` before.

        Raises:
            OutputError: the store refuses it.

        """
        part_bytes = max(_PART_BYTES, self._planned.nbytes // _MOST_PARTS)
        try:
            store, path = store_of(self.url)
            self._upload = store.open(path, "wb", block_size=part_bytes, autocommit=False)
            self._send(self._planned.header)
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            raise_upload_error(self.url, error)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Send ``data``, or keep it until what comes before it was sent; safe to call from several threads."""
        with self._lock:
            self._waiting[offset] = data.tobytes()
            try:
                while (piece := self._waiting.pop(self._sent, None)) is not None:
                    if piece:
                        self._send(piece)
                        self._sent += len(piece)
            except Exception as error:  # noqa: BLE001
                raise_upload_error(self.url, error)

    def _send(self, piece: bytes) -> None:
        self._upload.write(piece)
        self._digest.update(piece)

    def finish(self) -> Written:
        """Send the rest; the object is whole then, and not shown yet.

        Raises:
            OutputError: the store did not take it.

        """
        if self._sent != self._planned.data_bytes:
            raise OutputError(f"only {self._sent:,} of {self._planned.data_bytes:,} bytes were sent")
        try:
            self._upload.close()
        except Exception as error:  # noqa: BLE001
            raise_upload_error(self.url, error)
        sha256 = self._digest.hexdigest()
        whole = WrittenFile(
            name=self.url.name, role=FileRole.WEIGHTS, nbytes=self._planned.nbytes, sha256=sha256, modified_ns=0
        )
        return Written(files=(whole,))

    def publish(self) -> None:
        """Complete the upload, and ask the store for the size of what is there.

        Raises:
            OutputError: the store did not take it, or not all of it.

        """
        try:
            self._upload.commit()
        except Exception as error:  # noqa: BLE001
            raise_upload_error(self.url, error)
        self._published = True
        check_sent(self.url, self._planned.nbytes)

    def discard(self) -> None:
        """Break the upload off; nothing happens after ``publish``."""
        if self._published or self._upload is None:
            return
        with contextlib.suppress(Exception):  # the run has failed already
            self._upload.discard()
        self._upload.closed = True  # it is not to be completed when it is collected
