"""Recognise a folder that is one checkpoint by the names in it, and read it as what it is."""

from __future__ import annotations

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool


def read_folder(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint folder; its files stay open in ``folder.sources``.

    Raises:
        InputRefused: it is not a checkpoint, or cannot be used.

    """
    raise InputRefused("is a folder, but not one that is a checkpoint")
