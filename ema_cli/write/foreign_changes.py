"""What another program may have done where an output is being written: nothing of it is taken for ours, or lost."""

from __future__ import annotations

import os
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.records.files import WrittenFile
from ema_cli.text import quoted

State = tuple[int, int, int, int]
"""Device, inode, size and time of the last modification of a file."""


def state_of(path: Path) -> State | None:
    """Return what stands at ``path``; ``None`` if nothing does.

    Raises:
        OSError: that cannot be told.

    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refuse_stranger(path: Path, before: State | None) -> None:
    """Raise if something stands at ``path`` that did not when the run began: nobody agreed to its loss.

    Raises:
        OutputError: there is.
        OSError: that cannot be told.

    """
    now = state_of(path)
    if now is not None and now != before:
        done = "changed" if before is not None else "put there"
        raise OutputError(
            f"{quoted(str(path))} was {done} by another program during the run", hint="choose another name with -o"
        )


def refuse_touched(temp: Path, written: WrittenFile) -> None:
    """Raise if a finished file is not there any more as it was checked.

    Raises:
        OutputError: it was changed.
        OSError: it is not there.

    """
    status = os.lstat(temp)
    if (status.st_size, status.st_mtime_ns) != (written.nbytes, written.modified_ns):
        raise OutputError(f"{quoted(str(temp))} was changed by another program during the run")
