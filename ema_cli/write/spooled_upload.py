"""An output in a store that takes only whole files: built in a temporary file, and sent when it is complete.

The temporary file has no name on the disk, so a run that is killed leaves nothing. Files that belong together and go to
one repository of the Hugging Face Hub are sent as one commit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from io import BufferedRandom

from ema_cli.errors import OutputError
from ema_cli.records.files import FileRole, PlannedFile, Written
from ema_cli.storage.remote.failures import writing_error
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.file import check_space, write_at
from ema_cli.write.temp_names import random_name
from ema_cli.write.uploads import Upload, check_sent, uploading


class SpooledUpload(Upload):
    """An upload of a whole file."""

    def __init__(self, url: Url, planned: PlannedFile, role: FileRole = FileRole.WEIGHTS) -> None:
        super().__init__(url, planned, role)
        self._spool: BufferedRandom | None = None
        self._missing = planned.data_bytes
        self._lock = threading.Lock()

    @property
    def spool(self) -> BufferedRandom:
        """The temporary file."""
        assert self._spool is not None, "open comes first"  # noqa: S101
        return self._spool

    def open(self) -> None:
        """Make the temporary file, if the store is known."""
        store_of(self.url)
        with uploading(self.url):
            self._spool = tempfile.TemporaryFile(prefix="ema-avg-")  # noqa: SIM115 - closed by discard
            check_space(os.fstatvfs(self.spool.fileno()), self.planned.nbytes)
            write_at(self.spool.fileno(), 0, self.planned.header)

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section of the temporary file."""
        with uploading(self.url):
            write_at(self.spool.fileno(), len(self.planned.header) + offset, data)
        with self._lock:
            self._missing -= len(data)

    def finish(self) -> Written:
        """Describe the file as it reads back from the disk; raise if bytes are missing."""
        if self._missing:
            raise OutputError(f"{quoted(str(self.url))} is incomplete: {self._missing:,} bytes were not written")
        self.spool.seek(0)
        return self._describe(hashlib.file_digest(self.spool, "sha256").hexdigest())

    def publish(self) -> None:
        """Send the file."""
        if self.url.scheme == "hf":
            commit_together([self], [])
            return
        with uploading(self.url):
            self._send()
        check_sent(self.url, self.planned.nbytes)

    def _send(self) -> None:
        """Send the file under another name first: a store may show it while it is being sent."""
        store, path = store_of(self.url)
        temp_url = self.url.with_name(random_name(self.url.name))
        _, temp = store_of(temp_url)
        self.spool.seek(0)
        try:
            with store.open(temp, "wb") as upload:
                shutil.copyfileobj(self.spool, upload, 1 << 20)
            store.mv(temp, path)
        except BaseException as error:
            try:
                if store.exists(temp):
                    store.rm_file(temp)
            except Exception:  # noqa: BLE001 - the first error is the reason
                self._name_leftover(temp_url, error)
            raise

    def _name_leftover(self, temp: Url, error: BaseException) -> None:
        """Raise an error that names the temporary object, if the first one does not end the program."""
        if isinstance(error, Exception):
            failed = writing_error(error, self.url)
            left = f"{failed.message}; the temporary object {quoted(str(temp))} could not be removed"
            raise OutputError(left, hint=failed.hint) from error

    def discard(self) -> None:
        """Close the temporary file, which removes it."""
        if self._spool is not None:
            self._spool.close()


def commit_together(uploads: Sequence[SpooledUpload], removed: Sequence[Url]) -> None:
    """Send files to one repository of the Hugging Face Hub and remove others, all in one commit.

    Args:
        uploads: the files, complete; they replace files of the same name.
        removed: files of that repository to remove.

    Raises:
        OutputError: the Hub did not accept the commit.

    """
    with uploading(uploads[0].url):
        _commit(uploads, removed)
    for upload in uploads:
        check_sent(upload.url, upload.planned.nbytes)


def _commit(uploads: Sequence[SpooledUpload], removed: Sequence[Url]) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, utils  # noqa: PLC0415 - slow, and rare

    store, path = store_of(uploads[0].url)
    repository = store.resolve_path(path)
    operations: list[object] = []
    for upload in uploads:
        upload.spool.seek(0)
        operations.append(CommitOperationAdd(path_in_repo=_path_in_repo(upload.url), path_or_fileobj=upload.spool))
    operations += [CommitOperationDelete(path_in_repo=_path_in_repo(url)) for url in removed]
    quiet = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        HfApi(endpoint=store.endpoint, token=store.token).create_commit(
            repository.repo_id,
            operations,
            commit_message=f"Add {', '.join(upload.url.name for upload in uploads)}"[:72],
            repo_type=repository.repo_type,
            revision=repository.revision,
        )
    finally:
        if not quiet:
            utils.enable_progress_bars()


def _path_in_repo(url: Url) -> str:
    """Return the path of a file inside its repository."""
    store, path = store_of(url)
    return str(store.resolve_path(path).path_in_repo)
