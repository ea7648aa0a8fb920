"""The permissions of what is replaced: the new file or folder gets them, and never more.

A replacement is made with permissions for its owner alone and gets those of the original at the end, so nobody reads
it in between who could not read the original. Set-user-ID and the like are not copied, nor are access control lists
and extended attributes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from ema_cli.record import record

NEW_FILE, NEW_FOLDER = 0o666, 0o777
"""Permissions that files and folders are made with; the system applies the umask."""
_OWN_FILE, _OWN_FOLDER = 0o600, 0o700
"""Permissions for the owner alone."""
_BITS = 0o777
_TO_OTHERS = 3
"""Bits between the permissions of the group and the same permissions of others."""


@record
class Permissions:
    """Who may read and write the original."""

    mode: int
    group: int | None
    """Its group; ``None`` if the originals have several."""
    limit: bool = False
    """Whether the mode is only an upper limit, because the file itself is new."""

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the permissions of a file or folder; ``None`` if there is none, or if it is a link.

        Raises:
            OSError: the path cannot be looked up.

        """
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISLNK(status.st_mode) else cls(mode=status.st_mode & _BITS, group=status.st_gid)

    @classmethod
    def common(cls, several: Iterable[Permissions]) -> Self | None:
        """Return what all originals permit, for a new file among their replacements; ``None`` without originals."""
        mode, groups = _BITS, set[int | None]()
        for one in several:
            mode &= one.mode
            groups.add(one.group)
        return cls(mode=mode, group=groups.pop() if len(groups) == 1 else None, limit=True) if groups else None

    def set_on(self, descriptor: int) -> None:
        """Give an open file or folder these permissions. If the system refuses, it keeps those of its owner alone.

        A group that cannot be kept gets no more than everybody had, and everybody no more than the group had.
        """
        with contextlib.suppress(OSError):
            if self.group is not None and os.fstat(descriptor).st_gid != self.group:
                with contextlib.suppress(OSError):
                    os.fchown(descriptor, -1, self.group)
            status = os.fstat(descriptor)
            mode = self.mode & status.st_mode if self.limit else self.mode
            if status.st_gid != self.group:
                both = mode & (mode >> _TO_OTHERS) & stat.S_IRWXO
                mode = mode & stat.S_IRWXU | both << _TO_OTHERS | both
            os.fchmod(descriptor, mode | (status.st_mode & ~_BITS & 0o7777))


def mode_of_new_file(original: Permissions | None) -> int:
    """Return the mode that a file is made with: as any new file, unless it replaces one, or belongs to a folder."""
    if original is None:
        return NEW_FILE
    return original.mode & NEW_FILE | _OWN_FILE if original.limit else _OWN_FILE


def mode_of_new_folder(original: Permissions | None) -> int:
    """Return the mode that a folder is made with: as any new folder, unless it replaces one."""
    return NEW_FOLDER if original is None else _OWN_FOLDER
