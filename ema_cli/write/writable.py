"""Whether a path can be written, asked before the work."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.text import quoted
from ema_cli.write.publish import Writing, kind_of
from ema_cli.write.temp_names import longest_name


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Raise, before the work, if a file or a folder could not be published at ``path`` after it.

    Raises:
        OutputError: a folder above it is not writable, or something of another kind has its name or that of a folder.

    """
    with Writing(path):
        _check_parents(path)
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        _check_owner(path)
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise OutputError(f"{quoted(str(path))} cannot be written: it is a {kind_of(mode)}", hint="choose another name")
    with Writing(path):
        is_mount = folder and path.is_mount()
    if is_mount:
        raise OutputError(
            f"{quoted(str(path))} cannot be written: it is a mount point, which has to stay where it is",
            hint="choose a folder inside it with -o",
        )


def _check_parents(path: Path) -> None:
    """Raise if ``path`` cannot be written because of a folder above it that is none, or cannot be made.

    Raises:
        OutputError: naming the folder.
        OSError: the folder exists, and is not writable.

    """
    folder = next((one for one in (path.parent, *path.parent.parents) if os.path.lexists(one)), path.parent)
    if not folder.is_dir():
        mode = folder.lstat().st_mode
        kind = "a link that leads to no folder" if stat.S_ISLNK(mode) else f"a {kind_of(mode)}, not a folder"
        message = f"{quoted(str(path))} cannot be written: {quoted(str(folder))} is {kind}"
        raise OutputError(message, hint="choose another name")
    *missing, name = path.parts[len(folder.parts) :]
    if any(len(os.fsencode(one)) > longest_name(folder) for one in (*missing, name)):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):  # a folder is opened for reading to make its names durable
        return
    denied = os.strerror(errno.EACCES)
    if missing:
        reason = f"no folder {quoted(missing[0])} can be made in {quoted(str(folder))}: {denied}"
        raise OutputError(f"{quoted(str(path))} cannot be written: {reason}", hint="choose another name")
    raise OSError(errno.EACCES, denied)


def _check_owner(path: Path) -> None:
    """Raise ``OSError`` if ``path`` belongs to another user, in a folder such as ``/tmp`` where only owners rename."""
    folder, user = path.parent.stat(), os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, path.lstat().st_uid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
