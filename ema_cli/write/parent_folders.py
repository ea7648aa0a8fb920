"""The folders above a file to write: made where they are missing, and removed again if the file does not come.

Only a run that writes makes them, at the moment when it makes its first file there. Runs that write into one new folder
do not disturb each other: whoever fails removes only empty folders that it has made, and whoever finds its folder
removed makes it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

from ema_cli.write.publish import sync_folder

_MOST_TRIES = 100


class ParentFolders:
    """The folders above ``path``. As a context, it removes those that it has made if the block fails."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        """Remove the folders after a failure."""
        if kind is not None:
            self.remove()

    def creating(self, create: Callable[[], int]) -> int:
        """Return the descriptor of a file that ``create`` makes in the folder; missing folders are made.

        Raises:
            OSError: the system refuses.

        """
        for _ in range(_MOST_TRIES):
            try:
                return create()
            except FileNotFoundError:
                self._make()
        return create()

    def _make(self) -> None:
        """Make the missing folders, with the permissions that the umask leaves, and their names durable."""
        missing = list(takewhile(lambda folder: not folder.is_dir(), (self._folder, *self._folder.parents)))
        for folder in reversed(missing):
            self._made.append(folder)  # first, as a signal may come at any time
            try:
                folder.mkdir()
            except OSError as error:
                self._made.pop()
                if isinstance(error, FileNotFoundError) or (isinstance(error, FileExistsError) and folder.is_dir()):
                    continue  # another run has made or removed it
                raise
            sync_folder(folder.parent)

    def remove(self) -> None:
        """Remove the folders that were made, unless something is in them."""
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()
