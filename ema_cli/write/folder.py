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
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.permissions import Permissions, mode_of_new_folder
from ema_cli.write.publish import FileState, Writing, refuse_changed, refuse_foreign, state_of, sync_folder
from ema_cli.write.temp_names import name_aside, remove, rename_aside, temporary_name

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""A flag of ``renameat2``, see rename(2) of Linux."""
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of systems without this call: old kernels, file systems such as NFS, containers that forbid it."""


class OutputFolder(FolderFiles[OutputFile]):
    """A folder of safetensors files and side files; see ``Target``.

    Args:
        output: what to write.
        old: the folder of that name as it was examined before the run; ``None`` if there was nothing in it.
        temp: path of the folder until it is published; a random name beside ``path`` by default.

    """

    def __init__(self, output: PlannedOutput, old: OldFolder | None = None, *, temp: Path | None = None) -> None:
        self.path = output.local
        self._temp = temporary_name(output.local) if temp is None else temp
        self._old = old
        self._most: Permissions | None = None
        """What files with a new name are permitted at most, where an old folder is replaced."""
        super().__init__(output)
        self._before: FileState | None = None
        """The state of ``path`` when it was examined."""
        self._written: Written | None = None
        self._published = False

    @property
    def temp(self) -> Path:
        """The path of the folder until it is published."""
        return self._temp

    def _make_file(self, planned: PlannedFile, role: FileRole) -> OutputFile:
        temp = self._temp / planned.name
        path = self.path / planned.name
        return OutputFile(
            *(path, planned.header, planned.data_bytes),
            temp=temp,
            role=role,
            most=self._most,
            read_back_whole=self._output.read_back_whole,
        )

    def open(self) -> None:
        """Make the folder, take the space of its files, and put the foreign files of the old folder into it."""
        with Writing(self.path):
            self._before = self._old.state if self._old else state_of(self.path)
            self._most = self._old.permissions_of_new_files() if self._old else None
            self._make_folder()
            check_space(os.statvfs(self._temp), self._bytes())
        for file in self._files:
            file.most = self._most
            file.reserve()
        if self._old is not None:
            with Writing(self.path):
                self._old.give_kept_files(self._temp)

    def _make_folder(self) -> None:
        self._temp.mkdir(mode_of_new_folder(Permissions.of(self.path)))

    def _bytes(self) -> int:
        """Return the size of all files together."""
        sizes = [*(file.nbytes for file in self._output.files), *(side.nbytes for side in self._output.beside)]
        return sum(sizes)

    def finish(self) -> Written:
        """Make the folder durable and verify the bytes on the disk; it keeps its temporary name."""
        return self._conclude(super().finish())

    def _conclude(self, written: Written) -> Written:
        """Make the folder durable, all files of which are; return their description."""
        self._written = written
        with Writing(self.path):
            self._sync()
        return self._written

    def _sync(self) -> None:
        """Make the names in the folder durable."""
        sync_folder(self._temp)

    def publish(self) -> None:
        """Give the folder its name, unless another program changed a file or put a folder in its place.

        An old folder of that name is removed, or put back if this fails.
        """
        assert self._written is not None, "finish comes first"  # noqa: S101
        with Writing(self.path):
            for file in self._written.files:
                refuse_changed(self._temp / file.name, file)
            refuse_foreign(self.path, self._before)
            self._keep_permissions()
            if self._old is None or not self._exchange_with(self._old):
                self._rename(self._old)

    def _keep_permissions(self) -> None:
        """Give the new folder the permissions of the old."""
        permissions = Permissions.of(self.path)
        if permissions is not None:
            descriptor = os.open(self._temp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                permissions.set_on(descriptor)
                os.fsync(descriptor)
            finally:
                with contextlib.suppress(OSError):  # nothing was written through this descriptor
                    os.close(descriptor)

    def _exchange_with(self, old: OldFolder) -> bool:
        """Exchange the names of the new and the old folder, and remove the old; ``False`` if the system cannot."""
        old.refuse_changed(self.path, self._temp)
        if not exchange(self._temp, self.path):
            return False
        self._published = True
        try:
            old.refuse_changed(self._temp, self.path)
            sync_folder(self.path.parent)
        except BaseException:
            exchange(self._temp, self.path)
            self._published = False
            raise
        with contextlib.suppress(OSError):  # a later run removes what cannot be removed now
            old.remove(self._temp)
        return True

    def _rename(self, old: OldFolder | None) -> None:
        """Rename the new folder; an old folder is first set aside, and removed at the end."""
        aside = name_aside(self.path)
        if old is not None:
            self.path.rename(aside)
        try:
            if old is not None:
                old.refuse_changed(aside, self._temp)
            self._temp.rename(self.path)
            sync_folder(self.path.parent)
        except BaseException:
            if not self._temp.exists():
                self.path.rename(self._temp)
            if old is not None:
                aside.rename(self.path)
            raise
        self._published = True
        if old is not None:
            with contextlib.suppress(OSError):
                old.remove(rename_aside(aside, self.path))

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
