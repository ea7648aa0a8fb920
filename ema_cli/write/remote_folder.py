"""An output folder in a store: every file is sent while it is computed, and gets its name at the end.

No store can publish a folder at once. The index tells a reader of several files which of them belong together: an old
index is removed first, the new index comes last, and old weights that it does not list are removed after it. Only
weights that were there when the run began are removed, which its preflight found in the report of an earlier output.
The files of one repository of the Hugging Face Hub are one commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from ema_cli.errors import NothingMatched, OutputError
from ema_cli.records.files import FileRole, PlannedFile, is_weights
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import STREAMED, names_in
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted, shortlist
from ema_cli.write.folder_files import FolderFiles
from ema_cli.write.spooled_upload import SpooledUpload, commit_together
from ema_cli.write.streamed_upload import StreamedUpload
from ema_cli.write.uploads import Upload, uploading

_INDEX_SUFFIX = ".safetensors.index.json"


def make_upload(url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> Upload:
    """Return an upload of one file, of the kind that its store takes."""
    return (StreamedUpload if url.scheme in STREAMED else SpooledUpload)(url, planned, role)


class RemoteFolder(FolderFiles[Upload]):
    """A folder of safetensors files and side files; see ``Target``."""

    def __init__(self, output: PlannedOutput, url: Url) -> None:
        self._url = url
        self._old: list[str] = []
        """Weights of an earlier output."""
        super().__init__(output)

    def _make_file(self, planned: PlannedFile, role: FileRole) -> Upload:
        return make_upload(self._url / planned.name, planned, role)

    def open(self) -> None:
        """Begin the first file, so that a store that refuses files does so early."""
        with uploading(self._url):
            self._old = [name for name in self._names() if is_weights(name)]
        self._shards[0].open()

    def stop(self) -> None:
        """Let no thread wait any longer in ``write``."""
        for upload in self._files:
            if isinstance(upload, StreamedUpload):
                upload.stop()

    def publish(self) -> None:
        """Publish weights, side files and index, in this order; weights without an index come last."""
        weights, index, copies = (
            [upload for upload in self._files if upload.role is role]
            for role in (FileRole.WEIGHTS, FileRole.INDEX, FileRole.SIDE_FILE)
        )
        uploads = [*weights, *copies, *index] if index else [*copies, *weights]
        new = {upload.url.name for upload in uploads}
        unlisted = [name for name in self._old if name not in new]
        with uploading(self._url):
            if self._url.scheme == "hf":
                spooled = [upload for upload in uploads if isinstance(upload, SpooledUpload)]
                commit_together(spooled, [self._url / name for name in unlisted if name in self._names()])
            else:
                self._publish(uploads, unlisted)

    def _publish(self, uploads: Sequence[Upload], unlisted: Sequence[str]) -> None:
        """Publish files one after the other.

        Raises:
            OutputError: one of them fails; the error lists which are new.

        """
        self._remove(name for name in self._old if name.endswith(_INDEX_SUFFIX))
        done: list[str] = []
        try:
            for upload in uploads:
                upload.publish()
                done.append(upload.url.name)
        except OutputError as error:
            if not done:
                raise
            new = f"new in {quoted(str(self._url))}: {shortlist(map(quoted, done))}; the others are not"
            raise OutputError(f"{error.message}; {new}", hint=error.hint) from error
        self._remove(name for name in unlisted if not name.endswith(_INDEX_SUFFIX))

    def _names(self) -> list[str]:
        try:
            return list(names_in(self._url))
        except (FileNotFoundError, NothingMatched):
            return []

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            store, path = store_of(self._url / name)
            with contextlib.suppress(FileNotFoundError):  # removed already
                store.rm_file(path)
