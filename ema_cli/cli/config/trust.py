"""Whether a configuration file that was merely found is obeyed, and what it may set.

Nobody named such a file: it may be from another user, in a folder that all can write to, or from a downloaded project.
The first is a matter of owners and permissions, the second of the options that choose files.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ema_cli.cli.config.settings import Settings
from ema_cli.errors import UsageError
from ema_cli.options.declaration import Option
from ema_cli.text import listing, quoted

NAMED = "if you trust that file, name it: --config FILE"
"""The hint of everything that is refused here."""
_ROOT = 0
_MOST_FAULTS = 10
_RUN = "{run}/"
"""A folder that the user named, as the beginning of a path."""


class Ownership(Protocol):
    """What ``os.stat`` returns, as far as it matters here."""

    @property
    def st_uid(self) -> int:
        """The owner."""

    @property
    def st_mode(self) -> int:
        """The permissions."""

    @property
    def st_nlink(self) -> int:
        """The number of names."""


def why_ignored(file: Ownership, folder: Ownership, *, user: int, is_link: bool) -> str:
    """Return why a file that was found is ignored; empty if it is obeyed.

    It must belong to the user or to root, and others must not be able to write to it, or to put another of the user's
    files in its place: by renaming, in a folder that all can write to (unless it is sticky), or by a link. The write
    bit of the group does not matter: many systems give each user a group and set the bit, and a shared project is
    shared on purpose.

    Args:
        file: of the open file.
        folder: of the folder in which it was found.
        user: the effective user.
        is_link: its name there is a symbolic link.

    """
    if file.st_uid not in (user, _ROOT):
        return f"it belongs to another user (uid {file.st_uid})"
    if file.st_mode & stat.S_IWOTH:
        return "all users can write to it (chmod o-w changes that)"
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        return "all users can rename files in its folder"
    foreign = folder.st_uid not in (user, _ROOT) or folder.st_mode & stat.S_IWOTH
    if foreign and (is_link or file.st_nlink > 1):
        return "it is a link that another user may have made"
    return ""


def refuse_in_found(settings: Settings, options: Iterable[Option], file: Path, folder: Path) -> None:
    """Raise if a file that was merely found sets what only a named file may.

    Args:
        settings: of the file.
        options: the options that they belong to.
        file: its path.
        folder: the working directory.

    Raises:
        UsageError: one message reports all of them.

    """
    faults = [
        f"{quoted(str(file))}: {fault}"
        for one in options
        if one.parameter in settings
        for fault in [_fault(one, settings[one.parameter].value, folder, is_here=file.parent == folder)]
        if fault
    ]
    if faults:
        title = "a configuration file that was found, not named, cannot set everything:"
        message = faults[0] if len(faults) == 1 else listing(title, faults, most=_MOST_FAULTS)
        raise UsageError(message, hint=NAMED)


def _fault(option: Option, value: str | bool | Sequence[str], folder: Path, *, is_here: bool) -> str:
    """Return why an option cannot be set by a file that was found; empty if it can."""
    if option.in_found_file == "any":
        return ""
    if option.in_found_file == "never":
        return f"{option.key} cannot be set by a file that was found, only by a file that is named"
    if not is_here:
        return f"{option.key} can only be set by a file in the working directory, or by a file that is named"
    paths = [value] if isinstance(value, str) else value if not isinstance(value, bool) else []
    outside = next((path for path in paths if leads_outside(path, folder)), None)
    if outside is None:
        return ""
    return f"{option.key} = {quoted(outside)} is not a relative path below the working directory"


def leads_outside(path: str, folder: Path) -> bool:
    """Whether a path leads out of ``folder``: absolute, a URL, by ``~`` or ``..``, or through a symbolic link.

    Fields such as ``{decay}`` stand for any name. A leading ``{run}`` is a folder that the user named.
    """
    below = path.removeprefix(_RUN)
    parts = below.split("/")
    if below.startswith(("/", "~")) or "://" in below or "{run}" in below or "\0" in below or ".." in parts:
        return True
    root = Path(os.path.realpath(folder))
    names = [re.sub(r"\{\w+\}", "*", glob.escape(part)) for part in parts]
    names = names if below == path else ["{run}", *names]  # a folder of that name, where it is not filled in
    patterns = ["/".join(names[:count]) for count in range(1, len(names) + 1)]
    return not all(Path(os.path.realpath(root / name)).is_relative_to(root) for name in _names(patterns, root))


def _names(patterns: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield the names in a folder that match, with links that lead nowhere, which pathlib leaves out."""
    for pattern in patterns:
        yield from glob.iglob(pattern, root_dir=folder, include_hidden=True)  # noqa: PTH207
