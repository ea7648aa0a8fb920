"""Give a finished file its name, durably; small files are written whole."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
from pathlib import Path
from typing import NoReturn

from ema_cli.errors import OutputError
from ema_cli.text import quoted

_RANDOM_BYTES = 6

NEW_FILE = 0o666
"""Permissions of every file that is made here; the system takes the umask off."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole, durable, and under its name only then.

    Raises:
        OutputError: it cannot be written.

    """
    temp = temporary_name(path)
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            publish(temp, path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise_output_error(path, error)


def publish(temp: Path, path: Path) -> None:
    """Rename, and make the name durable."""
    temp.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else uses; leftovers of killed runs are known by it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}.partial")


def leftovers(name: str) -> str:
    """Return the pattern of the temporary names of a file, and of no other file."""
    return f".{glob.escape(name)}.{'[0-9a-f]' * 2 * _RANDOM_BYTES}.partial"


def check_place(path: Path) -> None:
    """Raise, before the work, what would keep a file from being put at ``path`` after it.

    Raises:
        OutputError: there is no such folder, it is not writable, or something other than a file is in the way.

    """
    try:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            code = errno.EACCES if path.parent.is_dir() else errno.ENOENT
            raise OSError(code, os.strerror(code))
        mode = path.lstat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT and path.parent.is_dir():
            return
        raise_output_error(path, error)
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "not a regular file"
        raise OutputError(f"{quoted(str(path))} cannot be written: it is {kind}", hint="choose another name")


def raise_output_error(path: Path, error: OSError) -> NoReturn:
    """Raise ``OutputError`` for a system error on the way to ``path``."""
    hints = {
        errno.ENOENT: f"mkdir -p {path.parent}",
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space, or write to another disk",
    }
    reason = error.strerror or str(error)
    raise OutputError(
        f"{quoted(str(path))} cannot be written: {reason}", hint=hints.get(error.errno or 0, "")
    ) from error
