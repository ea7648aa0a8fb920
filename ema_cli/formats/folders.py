"""Recognise a folder that is one checkpoint by the names in it, and read it as what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted, shortlist

Reader = Callable[[Folder, str | None, LayoutPool], Structure]
"""Reads the structure of a folder; the second argument is ``--key``."""
_MOST_TOLD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFormat:
    """A way in which a checkpoint is laid out in a folder."""

    recognise: Callable[[Folder], bool]
    """Whether a folder is of this format, complete or not, by the names in it and in its folders: nothing is opened."""
    read: Reader


FORMATS: tuple[FolderFormat, ...] = ()
"""In the order in which they are asked; the first that recognises a folder reads it."""


def format_of(folder: Folder) -> FolderFormat | None:
    """Return the format of a checkpoint folder, ``None`` if it is not one. Only names are looked at."""
    return next((known for known in FORMATS if known.recognise(folder)), None)


def read_folder(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint folder; its files stay open in ``folder.sources``.

    Raises:
        InputRefused: it is not a checkpoint, or cannot be used.

    """
    known = format_of(folder)
    if known is None:
        raise InputRefused(f"is a folder, but not one that is a checkpoint: {_told(folder)}")
    return known.read(folder, key, pool)


def _told(folder: Folder) -> str:
    """Say what lies in a folder."""
    names = [*sorted(folder.files), *(f"{name}/" for name in sorted(folder.folders))]
    return f"it holds {shortlist(map(quoted, names), most=_MOST_TOLD)}" if names else "it is empty"
