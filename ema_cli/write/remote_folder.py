"""An output folder in a store: every file is sent while it is computed, and gets its name at the end.

No store can publish a folder at once. The index tells a reader of several files which of them belong together: an old
index is removed first, the new index comes last, and old weights that it does not list are removed after it. The files
of one repository of the Hugging Face Hub are one commit.
"""

from __future__ import annotations

from collections.abc import Iterable

from ema_cli.errors import NothingMatched
from ema_cli.records.files import FileRole, PlannedFile, Written, is_weights
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import STREAMED, names_in
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.write.folder_files import FolderFiles
from ema_cli.write.spooled_upload import SpooledUpload, commit_together
from ema_cli.write.streamed_upload import StreamedUpload
from ema_cli.write.uploads import Upload, raise_upload_error

_INDEX_SUFFIX = ".safetensors.index.json"


def make_upload(url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> Upload:
    """Return an upload of one file, of the kind that its store takes."""
    return (StreamedUpload if url.scheme in STREAMED else SpooledUpload)(url, planned, role)


class RemoteFolder:
    """A folder of safetensors files and side files.

    Args:
        output: the folder.
        url: of the folder.

    """

    def __init__(self, output: PlannedOutput, url: Url) -> None:
        self._url = url
        self._uploads: list[Upload] = []
        shards = [self._make_upload(planned, FileRole.WEIGHTS) for planned in output.files]
        self._files = FolderFiles(output, shards, self._make_upload)

    def _make_upload(self, planned: PlannedFile, role: FileRole) -> Upload:
        upload = make_upload(self._url / planned.name, planned, role)
        self._uploads.append(upload)
        return upload

    def open(self) -> None:
        """Begin the first file, so that a store that refuses files does so early. Arrange for ``discard`` first.

        Raises:
            OutputError: the store refuses it.

        """
        self._files.open_first()

    def write(self, offset: int, data: memoryview) -> None:
        """Take ``data`` at byte ``offset`` of the data section of all files; safe to call from several threads.

        Raises:
            OutputError: it cannot be sent.

        """
        self._files.write(offset, data)

    def finish(self) -> Written:
        """Send the rest; the files are complete then, and have no names yet.

        Raises:
            OutputError: the store did not accept the files.
            InputChanged: a side file to copy was changed or removed.

        """
        return self._files.finish()

    def publish(self) -> None:
        """Publish weights, side files and index, in this order; weights without an index come last.

        Raises:
            OutputError: the store did not accept all of them.

        """
        weights, index, copies = (
            [upload for upload in self._uploads if upload.role is role]
            for role in (FileRole.WEIGHTS, FileRole.INDEX, FileRole.SIDE_FILE)
        )
        uploads = [*weights, *copies, *index] if index else [*copies, *weights]
        old = [name for name in self._names() if is_weights(name)]
        new = {upload.url.name for upload in uploads}
        try:
            if self._url.scheme == "hf":
                spooled = [upload for upload in uploads if isinstance(upload, SpooledUpload)]
                commit_together(spooled, [self._url / name for name in old if name not in new])
            else:
                self._remove(name for name in old if name.endswith(_INDEX_SUFFIX))
                for upload in uploads:
                    upload.publish()
                self._remove(name for name in old if name not in new and not name.endswith(_INDEX_SUFFIX))
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
        """Discard all files that were not published."""
        self._files.discard()
