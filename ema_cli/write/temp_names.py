"""The hidden names beside an output, and the removal of what killed runs left under them.

A long name is shortened in them, with a digest of the whole name, so that they fit where the name itself fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

_RANDOM_BYTES = 6
_BUILT, _ASIDE = "partial", "old"
_RESUMABLE, _JOURNAL, _LOCK = "resume.partial", "journal", "lock"
_ROOM_BYTES = 22
"""Of a hidden name, for what is around the name of the output: ``.NAME.0123456789ab.partial``."""
_DIGEST_DIGITS = 16
_HEX_DIGITS = frozenset("0123456789abcdef")
_INSIDE_CHARACTER = range(0x80, 0xC0)
"""Bytes of UTF-8 that no character begins with."""
_LONGEST_BYTES = 255
"""Of a name, if the file system does not say."""


def temporary_name(path: Path) -> Path:
    """Return a unique name beside ``path`` for a half-built output; later runs recognize leftovers by it."""
    return _hidden(path, _BUILT)


def name_aside(path: Path) -> Path:
    """Return a unique name beside ``path`` for the old folder while a new folder replaces it."""
    return _hidden(path, _ASIDE)


def resumable_name(path: Path) -> Path:
    """Return the name of a half-built output that an interrupted run leaves for the next one."""
    return path.with_name(f".{_stem(path)}.{_RESUMABLE}")


def journal_name(path: Path, rank: int = 0) -> Path:
    """Return the name of the journal of an interrupted run; of several processes, each has its own."""
    return path.with_name(f".{_stem(path)}.{_JOURNAL}{f'-{rank}' if rank else ''}")


def journals_of_ranks(path: Path) -> list[Path]:
    """Return the journals of all processes but the first, in no order."""
    return [journal for journal, rank in _beside(path, f"{_JOURNAL}-", "") if rank.isdecimal()]


def lock_name(path: Path) -> Path:
    """Return the name of the lock of an output."""
    return path.with_name(f".{_stem(path)}.{_LOCK}")


def visible_name(path: Path) -> Path:
    """Return a unique name beside ``path`` for files that nobody may remove."""
    return path.with_name(f"{_stem(path)}.{os.urandom(_RANDOM_BYTES).hex()}.kept")


def longest_name(folder: Path) -> int:
    """Return how many bytes a name in a folder may have."""
    try:
        return os.statvfs(folder).f_namemax
    except OSError:
        return _LONGEST_BYTES


def _stem(path: Path) -> str:
    """Return the name of an output for hidden names: a long one is cut between two characters and gets its digest."""
    raw, room = os.fsencode(path.name), longest_name(path.parent) - _ROOM_BYTES
    if len(raw) <= room:
        return path.name
    end = max(room - _DIGEST_DIGITS - 1, 0)
    while end and raw[end] in _INSIDE_CHARACTER:
        end -= 1
    return f"{os.fsdecode(raw[:end])}~{hashlib.sha256(raw).hexdigest()[:_DIGEST_DIGITS]}"


def random_name(name: str, kind: str = _BUILT) -> str:
    """Return a unique hidden name for a file or folder that will be called ``name``."""
    return f".{name}.{os.urandom(_RANDOM_BYTES).hex()}.{kind}"


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(random_name(_stem(path), kind))


def remove_leftovers(path: Path, *, keep_resumable: bool = False) -> None:
    """Remove what killed runs left; put back an old folder that was set aside for a new folder that never came.

    Only for a run that holds the lock of ``path``. ``keep_resumable`` keeps the journal and the half-built output of an
    interrupted run.

    Raises:
        OSError: something cannot be put back or removed.

    """
    is_unpublished = any(built.is_dir() for built in leftovers_of(path))
    for aside in _hidden_beside(path, _ASIDE):
        if not os.path.lexists(path):
            aside.rename(path)
        elif is_unpublished:  # what has the name is not what this folder was set aside for
            aside.rename(visible_name(path))
        else:
            remove(rename_aside(aside, path))
    for built in leftovers_of(path):
        remove(built)
    if not keep_resumable:
        resumable_name(path).unlink(missing_ok=True)
        for journal in (journal_name(path), *journals_of_ranks(path)):
            journal.unlink(missing_ok=True)


def leftovers_of(path: Path) -> list[Path]:
    """Return the half-built files and folders beside ``path``: of killed runs, and of runs that are still writing.

    Those of ``--resume`` are not among them.
    """
    return _hidden_beside(path, _BUILT)


def rename_aside(aside: Path, path: Path) -> Path:
    """Give the old folder that was set aside for ``path`` the name of a half-built output, and return that.

    A folder that is half removed must never be put back.

    Raises:
        OSError: it cannot be renamed.

    """
    doomed = temporary_name(path)
    aside.rename(doomed)
    return doomed


def is_nonempty_folder(folder: Path) -> bool:
    """Return whether there is a folder of that name with something in it; a rename replaces an empty folder.

    Raises:
        OSError: it cannot be listed, or is not a folder.

    """
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; links are not followed.

    Raises:
        OSError: it cannot be removed.

    """
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):  # it may have the permissions of a folder that may not be changed
            path.chmod(stat.S_IRWXU)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hidden_beside(path: Path, kind: str) -> list[Path]:
    """Return what has a hidden name that was made here for ``path``."""
    found = _beside(path, "", f".{kind}")
    return [hidden for hidden, digits in found if len(digits) == 2 * _RANDOM_BYTES and set(digits) <= _HEX_DIGITS]


def _beside(path: Path, begin: str, end: str) -> list[tuple[Path, str]]:
    """Return what is beside ``path`` under hidden names, and the text between ``begin`` and ``end`` in each name."""
    begin = f".{_stem(path)}.{begin}"
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [
        (path.with_name(name), name.removeprefix(begin).removesuffix(end))
        for name in names
        if name.startswith(begin) and name.endswith(end)
    ]
