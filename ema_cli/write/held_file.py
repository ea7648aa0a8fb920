"""Temporary files of small files, such as reports, which have no lock of their own.

A run holds the lock of its temporary file until the file has its name. The system releases the lock when the process
ends, however it ends, so a file that nobody holds is a leftover of a killed run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from ema_cli.write.temp_names import leftovers_of

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks: Lustre mounted without ``flock``, NFS without its lock service."""


def hold(descriptor: int, temp: Path) -> bool:
    """Lock the new temporary file ``temp``; return whether it is still there.

    If it is not, another run has removed it before it was locked. On a file system without locks it is not locked; no
    run can lock it there, so none removes it.

    Raises:
        OSError: the system refuses.

    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return is_named(descriptor, temp)


def is_named(descriptor: int, path: Path) -> bool:
    """Return whether ``path`` is a name of an open file.

    Raises:
        OSError: the file cannot be looked up.

    """
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def remove_abandoned(path: Path) -> None:
    """Remove what killed runs left of a small file ``path``: the temporary files that nobody holds.

    A file that cannot be opened, locked or removed stays.
    """
    for temp in leftovers_of(path):
        with contextlib.suppress(OSError):
            _remove_unless_held(temp)


def _remove_unless_held(temp: Path) -> None:
    descriptor = os.open(temp, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temp.unlink()
    finally:
        os.close(descriptor)
