"""Links among the files of a checkpoint folder: which of them may be followed when a file is copied into an output.

A link can lead to any file that the user may read, such as a private key, and a copy in an output may be published.
So only files in the checkpoint folder itself are copied, and blobs of the cache of the Hugging Face Hub: there,
``models--USER--NAME/snapshots/REVISION`` consists of links to ``models--USER--NAME/blobs``. A hard link looks
like any other file.
"""

from __future__ import annotations

import os
from pathlib import Path

from ema_cli.errors import InputRefused
from ema_cli.storage.locations import Location, identity_of, open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
_KINDS_OF_REPOSITORIES = ("models--", "datasets--", "spaces--")


def open_inside(path: Location) -> ByteSource:
    """Open a file of a checkpoint folder, unless it is a link, of any number of steps, to a file outside.

    The folder itself may be a link. A store has no links.

    Raises:
        NothingMatched: it does not exist.
        InputRefused: it cannot be read, or leads outside; the message names the link and the file.

    """
    if not isinstance(path, Path):
        return open_source(path)
    target = _refuse_link_outside(path)
    source = open_source(path)
    if source.identity != identity_of(target):
        source.close()
        raise InputRefused(f"{quoted(str(path))} was replaced while it was being opened")
    return source


def _refuse_link_outside(path: Path) -> Path:
    """Return the file that a name refers to, links followed."""
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if not target.is_relative_to(folder) and not target.is_relative_to(_blobs_of(folder) or folder):
        raise InputRefused(
            f"{quoted(str(path))} is a link to {quoted(str(target))}, outside the checkpoint folder",
            hint="if it may be copied, put the file itself into the folder",
        )
    return target


def _blobs_of(folder: Path) -> Path | None:
    """Return the folder of the blobs of a folder in the cache of the Hub; ``None`` if it is not in one."""
    for inner in (folder, *folder.parents):
        repository = inner.parent.parent
        if inner.parent.name == _SNAPSHOTS and repository.name.startswith(_KINDS_OF_REPOSITORIES):
            return repository / _BLOBS
    return None
