"""Change a file as another process would: ``python tamper.py KIND FILE OTHER``. Imports nothing that is slow.

``OTHER`` has the new contents: a file of the same size, or a folder for ``swap-folder``.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path


def truncate(path: Path, _: Path) -> None:
    """Truncate the file in the middle."""
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path, other: Path) -> None:
    """Write over the file, in place."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def overwrite_quietly(path: Path, other: Path) -> None:
    """Write over the file, in place, and restore its times."""
    before = path.stat()
    overwrite(path, other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def overwrite_mapped(path: Path, other: Path) -> None:
    """Write over the file through a mapping of it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:] = other.read_bytes()


def grow(path: Path, _: Path) -> None:
    """Append to the file."""
    with path.open("ab") as file:
        file.write(bytes(range(100)))


def replace(path: Path, other: Path) -> None:
    """Replace the file by another file."""
    new = path.with_name(f".{path.name}.new")
    shutil.copyfile(other, new)
    new.replace(path)


def replace_quietly(path: Path, other: Path) -> None:
    """Replace the file by another file with the same times."""
    before = path.stat()
    replace(path, other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def delete(path: Path, _: Path) -> None:
    """Delete the file."""
    path.unlink()


def recreate(path: Path, other: Path) -> None:
    """Delete the file and make a new file of that name, which may get the same inode."""
    path.unlink()
    shutil.copyfile(other, path)


def swap_folder(path: Path, other: Path) -> None:
    """Replace a folder by another folder."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    other.rename(path)


IN_PLACE: dict[str, Callable[[Path, Path], None]] = {
    "truncate": truncate,
    "overwrite": overwrite,
    "overwrite-quietly": overwrite_quietly,
    "overwrite-mapped": overwrite_mapped,
    "grow": grow,
}
"""Changes after which the old contents are gone."""
OF_THE_NAME: dict[str, Callable[[Path, Path], None]] = {
    "replace": replace,
    "replace-quietly": replace_quietly,
    "delete": delete,
    "recreate": recreate,
    "swap-folder": swap_folder,
}
"""Changes after which a process that has the file open can still read the old contents."""
KINDS = {**IN_PLACE, **OF_THE_NAME}


def main() -> None:
    """Change one file."""
    kind, path, other = sys.argv[1:]
    KINDS[kind](Path(path), Path(other))


if __name__ == "__main__":
    main()
