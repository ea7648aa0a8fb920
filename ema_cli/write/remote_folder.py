"""An output that is a folder in a store: every file is sent while it is computed, and shown at the end.

No store can show a folder at once. The index is what tells a reader of several files what belongs together: an old
one goes first, the new one comes last, and what it does not name is removed after it. The files of one repository of
the Hugging Face Hub are one commit.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ema_cli.errors import NothingMatched
from ema_cli.records.files import FileRole, PlannedFile, SideFile, Written, WrittenFile, is_weights
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import STREAMED, names_in
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.write.remote import RemoteObject
from ema_cli.write.small_files import pieces_of
from ema_cli.write.spooled import SpooledObject, send_together
from ema_cli.write.uploads import raise_upload_error

Upload = RemoteObject | SpooledObject
_INDEX = ".safetensors.index.json"


def make_upload(url: Url, planned: PlannedFile) -> Upload:
    """Return what sends one object."""
    return RemoteObject(url, planned) if url.scheme in STREAMED else SpooledObject(url, planned)


class RemoteFolder:
    """A folder of safetensors files, whose data sections, one after the other, are that of the output.

    Args:
        output: what is written.
        url: of the folder.

    """

    def __init__(self, output: PlannedOutput, url: Url) -> None:
        self._output = output
        self._url = url
        self._begins = [planned.begin for planned in output.files]
        self._shards = [_Shard(make_upload(url / one.name, one), one) for one in output.files]
        self._beside: list[tuple[FileRole, Upload]] = []

    def open(self) -> None:
        """Begin the first file: a store that takes none says so. Arrange for ``discard`` before.

        Raises:
            OutputError: the store refuses it.

        """
        self._shards[0].begin()

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Send ``data``, at byte ``offset`` of the data section of all files; safe to call from several threads."""
        if len(data):
            number = bisect_right(self._begins, offset) - 1
            self._shards[number].write(offset - self._begins[number], data)

    def finish(self) -> Written:
        """Send the rest; the files are whole then, and not shown yet.

        Raises:
            OutputError: the store did not take them.
            InputChanged: a file that is carried over is not there any more as it was.

        """
        files = [shard.finish() for shard in self._shards]
        for side in self._output.beside:
            upload = make_upload(self._url / side.name, _planned(side))
            self._beside.append((side.role, upload))
            files.append(replace(_send(upload, side), role=side.role))
        return Written(files=tuple(sorted(files, key=lambda one: one.name)), folder=True)

    def publish(self) -> None:
        """Show the files: weights, what goes along, the index; weights that need no index come last.

        Raises:
            OutputError: the store did not take them all.

        """
        weights = [shard.upload for shard in self._shards]
        companions = [upload for role, upload in self._beside if role is not FileRole.INDEX]
        index = [upload for role, upload in self._beside if role is FileRole.INDEX]
        uploads = [*weights, *companions, *index] if index else [*companions, *weights]
        old = [name for name in self._names() if is_weights(name)]
        new = {upload.url.name for upload in uploads}
        try:
            if self._url.scheme == "hf":
                spooled = [upload for upload in uploads if isinstance(upload, SpooledObject)]
                send_together(spooled, [self._url / name for name in old if name not in new])
            else:
                self._remove(name for name in old if name.endswith(_INDEX))
                for upload in uploads:
                    upload.publish()
                self._remove(name for name in old if name not in new and not name.endswith(_INDEX))
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            raise_upload_error(self._url, error)

    def _names(self) -> list[str]:
        try:
            return list(names_in(self._url))
        except (FileNotFoundError, NothingMatched):
            return []

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            store, path = store_of(self._url / name)
            store.rm_file(path)

    def discard(self) -> None:
        """Break off all uploads that were not published, and forget temporary files."""
        for upload in (*(shard.upload for shard in self._shards), *(upload for _, upload in self._beside)):
            upload.discard()


class _Shard:
    """One file: begun with the first piece of it, and sent to its end with the last."""

    def __init__(self, upload: Upload, planned: PlannedFile) -> None:
        self.upload = upload
        self._missing = planned.data_bytes
        self._begun = False
        self._written: WrittenFile | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            if not self._begun:
                self.upload.open()
                self._begun = True

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self.begin()
        self.upload.write(offset, data)
        with self._lock:
            self._missing -= len(data)
            whole = self._missing == 0
        if whole:
            (self._written,) = self.upload.finish().files

    def finish(self) -> WrittenFile:
        if self._written is None:  # it holds no data, or not all of it came, which the upload tells
            self.begin()
            (self._written,) = self.upload.finish().files
        return self._written


def _planned(side: SideFile) -> PlannedFile:
    return PlannedFile(name=side.name, header=b"", begin=0, data_bytes=side.nbytes)


def _send(upload: Upload, side: SideFile) -> WrittenFile:
    upload.open()
    offset = 0
    for piece in pieces_of(side):
        upload.write(offset, np.frombuffer(piece, np.uint8))
        offset += len(piece)
    (written,) = upload.finish().files
    return written
