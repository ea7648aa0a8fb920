"""What the interpreter does while untrusted files are read: connections, programs, and writes outside of a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
_CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Canary:
    """Records forbidden events of the interpreter while it is armed, and makes them fail."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._folder: str | None = None
        self._armed = False
        sys.addaudithook(self._hook)  # it cannot be removed

    @contextmanager
    def armed(self, folder: Path | None = None) -> Iterator[list[str]]:
        """Record the events of all threads; in ``folder`` files may be written."""
        self.events, self._folder, self._armed = [], None if folder is None else str(folder), True
        try:
            yield self.events
        finally:
            self._armed = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        found = ""
        if event in _CONNECTING or event in _STARTING:
            found = f"{event} {arguments[-1]!r}"
        elif event in _CHANGING and not all(map(self._is_inside, arguments[:2])):
            found = f"{event} {arguments!r}"
        elif event == "open" and _writes(arguments) and not self._is_inside(arguments[0]):
            found = f"open to write {arguments[0]!r}"
        if found:
            self.events.append(found)
            raise PermissionError(found)

    def _is_inside(self, path: object) -> bool:
        """Whether a path is in the folder. Descriptors, modes and the like are no paths."""
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        absolute = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(path)))  # noqa: PTH109, PTH118
        return self._folder is not None and absolute.startswith(self._folder + os.sep)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)


CANARY = Canary()
"""One for the process."""
