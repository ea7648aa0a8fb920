"""The hidden names beside an output, and the removal of what killed runs left under them."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from pathlib import Path

_RANDOM_BYTES = 6
_BUILT, _ASIDE = "partial", "old"
_RESUMABLE, _JOURNAL = "resume.partial", "journal"


def temporary_name(path: Path) -> Path:
    """Return a unique name beside ``path`` for a half-built output; later runs recognize leftovers by it."""
    return _hidden(path, _BUILT)


def name_aside(path: Path) -> Path:
    """Return a unique name beside ``path`` for the old folder while a new folder replaces it."""
    return _hidden(path, _ASIDE)


def resumable_name(path: Path) -> Path:
    """Return the name of a half-built output that an interrupted run leaves for the next one."""
    return path.with_name(f".{path.name}.{_RESUMABLE}")


def journal_name(path: Path) -> Path:
    """Return the name of the journal of an interrupted run."""
    return path.with_name(f".{path.name}.{_JOURNAL}")


def random_name(name: str, kind: str = _BUILT) -> str:
    """Return a unique hidden name for a file or folder that will be called ``name``."""
    return f".{name}.{secrets.token_hex(_RANDOM_BYTES)}.{kind}"


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(random_name(path.name, kind))


def remove_leftovers(path: Path, *, keep_resumable: bool = False) -> None:
    """Remove what killed runs left; put back an old folder that was set aside for a new folder that never came.

    Only for a run that holds the lock of ``path``. ``keep_resumable`` keeps the journal and the half-built output of an
    interrupted run.

    Raises:
        OSError: something cannot be put back or removed.

    """
    for aside in path.parent.glob(_pattern(path, _ASIDE)):
        if not os.path.lexists(path):
            aside.rename(path)
        else:
            remove_aside(aside, path)
    for built in leftovers(path):
        remove(built)
    if not keep_resumable:
        resumable_name(path).unlink(missing_ok=True)
        journal_name(path).unlink(missing_ok=True)


def leftovers(path: Path) -> list[Path]:
    """Return the half-built files beside ``path``: of killed runs, and of runs that are still writing."""
    return list(path.parent.glob(_pattern(path, _BUILT)))


def remove_aside(aside: Path, path: Path) -> None:
    """Remove the old folder that was set aside for ``path``.

    It gets the name of a half-built output first: a folder that is half removed must never be put back.

    Raises:
        OSError: it cannot be removed.

    """
    doomed = temporary_name(path)
    aside.rename(doomed)
    remove(doomed)


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
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _pattern(path: Path, kind: str) -> str:
    """Return a pattern that matches the hidden names made here for ``path``, and no other names."""
    return f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _RANDOM_BYTES}.{kind}"
