"""The file system that a path is on, and whether several hosts may write one file there."""

from __future__ import annotations

import os
from pathlib import Path

_INCOHERENT = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs")
"""File systems whose hosts write whole pages back, and so lose what others have written into them."""
_INCOHERENT_PREFIX = "fuse."
_MOUNTS = Path("/proc/self/mountinfo")


def is_coherent(path: Path) -> bool:
    """Whether several hosts may write parts of one file in the folder of ``path``, as far as its type tells."""
    kind = file_system_of(path)
    return kind not in _INCOHERENT and not kind.startswith(_INCOHERENT_PREFIX)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that ``path`` will be on; empty if the system does not tell."""
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        device = folder.stat().st_dev
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    found = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number]
    return found[-1] if found else ""
