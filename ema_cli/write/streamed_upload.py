"""An output in a store that takes uploads in parts: sent in order while it is computed, without a copy on the disk.

The file appears in the store when its upload is completed, which is the last thing that happens; an aborted upload
leaves nothing. There is no lock: if two runs write one name, the later wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written
from ema_cli.storage.remote.daemon_pool import DaemonPool
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.uploads import Upload, check_sent, uploading
from ema_cli.write.waiting_pieces import WaitingPieces

_PART_BYTES = 1 << 23
_MOST_PARTS = 9_000
"""Of an upload; S3 accepts 10,000."""
ABORT_SECONDS = 20.0
"""For a store to abort an upload."""
_ABORTERS = DaemonPool("abort", threads=4)
_SENDERS = DaemonPool("send", threads=32)
_POLL_SECONDS = 0.2


class StreamedUpload(Upload):
    """An upload in parts."""

    def __init__(self, url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> None:
        super().__init__(url, planned, role)
        self._stream: Any = None
        self._digest = hashlib.sha256()
        self._sent = 0
        """Bytes of the data section that were passed to the stream."""
        self._waiting = WaitingPieces()
        """Pieces that came before their turn."""
        self._lock = threading.Lock()
        self._published = False
        self._stopping = threading.Event()

    def open(self) -> None:
        """Begin the upload."""
        part_bytes = max(_PART_BYTES, self.planned.nbytes // _MOST_PARTS)
        with uploading(self.url):
            store, path = store_of(self.url)
            self._stream = store.open(path, "wb", block_size=part_bytes, autocommit=False)
            self._send(self.planned.header)

    def write(self, offset: int, data: memoryview) -> None:
        """Send ``data`` if everything before it was sent, else keep it until then."""
        with uploading(self.url), self._lock:
            self._waiting.add(offset, data)
            while piece := self._waiting.take(self._sent):
                self._wait_for(_SENDERS.submit(partial(self._send, piece)))
                self._sent += len(piece)

    def _wait_for(self, sent: Future[None]) -> None:
        """Wait until a piece is sent. A thread of its own sends it, as requests cannot be interrupted."""
        while True:
            if self._stopping.is_set():
                raise OutputError(f"{quoted(str(self.url))} is incomplete: the run was stopped")
            try:
                return sent.result(_POLL_SECONDS)
            except TimeoutError:
                if sent.done():  # the error of the store
                    raise

    def stop(self) -> None:
        """Let no thread wait any longer in ``write``."""
        self._stopping.set()

    def _send(self, piece: bytes) -> None:
        self._stream.write(piece)
        self._digest.update(piece)

    def finish(self) -> Written:
        """Send the rest; raise if bytes are missing."""
        if self._sent != self.planned.data_bytes:
            sent = f"only {self._sent:,} of {self.planned.data_bytes:,} bytes were sent"
            raise OutputError(f"{quoted(str(self.url))} is incomplete: {sent}")
        with uploading(self.url):
            self._stream.close()
        return self._describe(self._digest.hexdigest())

    def publish(self) -> None:
        """Complete the upload, and check the size of the file in the store."""
        with uploading(self.url):
            self._stream.commit()
        self._published = True
        check_sent(self.url, self.planned.nbytes)

    def discard(self) -> None:
        """Abort the upload; does nothing after ``publish``. A store that does not answer is not waited for."""
        self._waiting.close()
        if self._published or self._stream is None:
            return
        with contextlib.suppress(Exception):  # the run has failed already
            _ABORTERS.submit(self._stream.discard).result(ABORT_SECONDS)
        self._stream.closed = True  # otherwise it would complete the upload when it is garbage collected
