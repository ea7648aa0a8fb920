"""What killed runs left beside an output: half-built files and folders, and folders that had stepped aside."""

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
    """Return a name beside ``path`` that nobody else uses; leftovers of killed runs are known by it."""
    return _hidden(path, _BUILT)


def name_aside(path: Path) -> Path:
    """Return a name beside ``path`` for what stands there, until something new has taken its place."""
    return _hidden(path, _ASIDE)


def resumable_name(path: Path) -> Path:
    """Return the name of a half-built output that an interrupted run leaves for the next one."""
    return path.with_name(f".{path.name}.{_RESUMABLE}")


def journal_name(path: Path) -> Path:
    """Return the name of the journal that tells how far that one is."""
    return path.with_name(f".{path.name}.{_JOURNAL}")


def random_name(name: str, kind: str = _BUILT) -> str:
    """Return a name for what is to be called ``name``, that nobody else uses."""
    return f".{name}.{secrets.token_hex(_RANDOM_BYTES)}.{kind}"


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(random_name(path.name, kind))


def sweep(path: Path, *, keep_resumable: bool = False) -> None:
    """Put back the folder that had stepped aside for a new one that never came, and remove all other leftovers.

    Only for a run that holds the lock of ``path``. What can be resumed stays for a run that resumes.

    Raises:
        OSError: something cannot be put back or removed.

    """
    for aside in path.parent.glob(_pattern(path, _ASIDE)):
        if not os.path.lexists(path):
            aside.rename(path)
        else:
            remove_aside(aside, path)
    for built in path.parent.glob(_pattern(path, _BUILT)):
        remove(built)
    if not keep_resumable:
        resumable_name(path).unlink(missing_ok=True)
        journal_name(path).unlink(missing_ok=True)


def remove_aside(aside: Path, path: Path) -> None:
    """Remove the folder that had stepped aside for ``path``.

    It becomes a leftover like any other first: what is half removed must never be put back.

    Raises:
        OSError: it cannot be removed.

    """
    doomed = temporary_name(path)
    aside.rename(doomed)
    remove(doomed)


def holds_something(folder: Path) -> bool:
    """Whether there is a folder of that name that is not empty: an empty one makes way by itself.

    Raises:
        OSError: it cannot be listed, or is something else.

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
    """Return the pattern of the names that are made here for ``path``, and of no other file."""
    return f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _RANDOM_BYTES}.{kind}"
