"""An output folder on a disk: built under a temporary name, and published whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from ema_cli.records.files import FileRole, PlannedFile, Written
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file import OutputFile, check_space
from ema_cli.write.folder_files import FolderFiles
from ema_cli.write.publish import FileState, Writing, refuse_changed, refuse_foreign, state_of, sync_folder
from ema_cli.write.temp_names import is_nonempty_folder, name_aside, remove, remove_aside, temporary_name

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""A flag of ``renameat2``, see rename(2) of Linux."""
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of systems without this call: old kernels, file systems such as NFS, containers that forbid it."""


class OutputFolder(FolderFiles[OutputFile]):
    """A folder of safetensors files and side files; see ``Target``."""

    def __init__(self, output: PlannedOutput) -> None:
        self.path = output.local
        self._temp = temporary_name(output.local)
        super().__init__(output)
        self._replaces = False
        """Whether an old folder must be replaced."""
        self._before: FileState | None = None
        """The state of ``path`` when the run began."""
        self._written: Written | None = None
        self._published = False

    def _make_file(self, planned: PlannedFile, role: FileRole) -> OutputFile:
        temp = self._temp / planned.name
        return OutputFile(self.path / planned.name, planned.header, planned.data_bytes, temp=temp, role=role)

    def open(self) -> None:
        """Make the folder and take the space of its files."""
        with Writing(self.path):
            self._before = state_of(self.path)
            self._replaces = is_nonempty_folder(self.path)
            self._temp.mkdir()
            sizes = [*(file.nbytes for file in self._output.files), *(side.nbytes for side in self._output.beside)]
            check_space(os.statvfs(self._temp), sum(sizes))
        for file in self._files:
            file.reserve()

    def finish(self) -> Written:
        """Make the folder durable and verify the bytes on the disk; it keeps its temporary name."""
        self._written = super().finish()
        with Writing(self.path):
            sync_folder(self._temp)
        return self._written

    def publish(self) -> None:
        """Give the folder its name, unless another program changed a file or put a folder in its place.

        An old folder of that name is removed, or put back if this fails.
        """
        assert self._written is not None, "finish comes first"  # noqa: S101
        with Writing(self.path):
            for file in self._written.files:
                refuse_changed(self._temp / file.name, file)
            refuse_foreign(self.path, self._before)
            if not (self._replaces and self._exchange_with_old()):
                self._rename()

    def _exchange_with_old(self) -> bool:
        """Exchange the names of the new and the old folder, and remove the old; ``False`` if the system cannot."""
        if not exchange(self._temp, self.path):
            return False
        self._published = True
        try:
            sync_folder(self.path.parent)
        except BaseException:
            exchange(self._temp, self.path)
            self._published = False
            raise
        with contextlib.suppress(OSError):  # a later run removes what cannot be removed now
            remove(self._temp)
        return True

    def _rename(self) -> None:
        """Rename the new folder; an old folder is first set aside, and removed at the end."""
        aside = name_aside(self.path) if self._replaces else None
        if aside is not None:
            self.path.rename(aside)
        try:
            self._temp.rename(self.path)
            sync_folder(self.path.parent)
        except BaseException:
            if not self._temp.exists():
                self.path.rename(self._temp)
            if aside is not None:
                aside.rename(self.path)
            raise
        self._published = True
        if aside is not None:
            with contextlib.suppress(OSError):
                remove_aside(aside, self.path)

    def discard(self) -> None:
        """Remove the folder that was built; does nothing after ``publish``."""
        if self._published:
            return
        super().discard()
        with contextlib.suppress(OSError):
            remove(self._temp)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names by one system call, so that both exist at any time; return ``False`` if the system cannot.

    Raises:
        OSError: the system has the call, and refuses.

    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one))
