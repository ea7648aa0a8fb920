"""Let two names change places by one call, so that at no instant one of them stands for nothing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Of ``renameat2``, see rename(2) of Linux."""
_IMPOSSIBLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""What kernels and file systems say that know no such call, as NFS does, and containers that forbid it."""


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places; return whether the system can do that.

    Raises:
        OSError: it can, and refuses.

    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in _IMPOSSIBLE:
        return False
    raise OSError(code, os.strerror(code), str(one))
