"""What a name on the command line means: one file or folder, or all that match a pattern, here and in a store.

Links to folders are followed. ``**`` visits every folder once, so links that loop end; what a pattern looks at in all
is bounded, as a link may lead to the root of the file system.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path

from ema_cli.errors import InputRefused
from ema_cli.naming import natural_key
from ema_cli.storage.locations import Location, base_of, identity_of, is_folder, is_link, locate, names_in
from ema_cli.storage.url import Url
from ema_cli.text import quoted, regex

MOST_NAMES = 2_000_000
"""Names that a pattern looks at; it takes seconds."""
_FOLDER_COST = 50
"""Opening a folder takes as long as looking at so many names."""
_ANY_DEPTH = "**"
"""This part of a pattern matches a folder and all folders below it."""
_MAGIC = regex(r"[*\[]")
"""Characters that make a URL a pattern; a question mark begins its query."""
_ROOT_PARTS = 2
"""Parts of a URL before the first folder: the scheme, and the bucket or host."""
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def whole_folder(locations: Sequence[Location], counts: Callable[[str], bool] = bool) -> Location | None:
    """Return the folder of which the locations are everything visible whose name ``counts``; ``None`` if not all."""
    folders = {location.parent for location in locations}
    if len(folders) != 1:
        return None
    (folder,) = folders
    try:
        names = {name for name in names_in(folder) if counts(name) and not name.startswith(".")}
    except OSError:
        return None
    return folder if names == {location.name for location in locations} else None


def matches(name: str, unreadable: list[str] | None = None) -> list[Location]:
    """Return the file or folder of that name or, if there is none and it is a pattern, all that match.

    Args:
        name: as on the command line.
        unreadable: receives the folders that the pattern needs and that cannot be listed, with the reasons.

    Raises:
        OSError: the system cannot look it up.
        InputRefused: the pattern matches in too large a tree.

    """
    location = locate(name)
    if isinstance(location, Url):
        place = location.place  # the host of a web address may have brackets, and cannot be listed
        if not _MAGIC.search("/".join(Url(place).parts[_ROOT_PARTS:]) if location.is_web else place):
            return [location]
        root: Location = Url(*location.parts[:_ROOT_PARTS])
        parts = location.parts[_ROOT_PARTS:]
    else:
        if location.exists() or not glob.has_magic(name):
            return [location]
        root = Path(base_of(name) or location.anchor)
        parts = location.relative_to(root).parts
    search = _PatternSearch(name=name, unreadable=[] if unreadable is None else unreadable)
    found = search.expand(root, parts, folders_only=name.endswith("/"))  # a slash at the end means folders
    return sorted(dict.fromkeys(found), key=lambda match: natural_key(str(match)))


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class _PatternSearch:
    """Lists the folders that one pattern needs, and counts the names in them."""

    name: str
    unreadable: list[str]
    left: int = field(default_factory=lambda: MOST_NAMES)

    def expand(self, root: Location, parts: Sequence[str], *, folders_only: bool) -> list[Location]:
        """Return what matches all parts of a pattern below ``root``."""
        found, exists = [root], True
        for number, part in enumerate(parts, start=1):
            only = folders_only or number < len(parts)
            if part == _ANY_DEPTH:
                found, exists = list(self._at_any_depth(found, only=only)), True
            elif isinstance(root, Url) or glob.has_magic(part):
                is_match = _matcher(part, literal=not _MAGIC.search(part) and isinstance(root, Url))
                found, exists = list(self._matching(found, is_match, only=only)), True
            else:
                found, exists = [folder / part for folder in found], False
        if exists:
            return found
        return [match for match in found if (is_folder(match) if folders_only else os.path.lexists(str(match)))]

    def _matching(
        self, folders: list[Location], is_match: Callable[[str], object], *, only: bool
    ) -> Iterator[Location]:
        """Yield the names that match in some folders, or ``only`` the folders among them."""
        for folder in folders:
            names = self._names(folder)
            yield from (folder / name for name, inner in names.items() if (inner or not only) and is_match(name))

    def _at_any_depth(self, roots: list[Location], *, only: bool) -> Iterator[Location]:
        """Yield folders and all below them that are not hidden, each once, by a name without links if it has one.

        Without ``only``, the files in them too.
        """
        waiting = deque(root for root in roots if not is_link(root))
        links = deque(root for root in roots if is_link(root))
        seen = set[object]()
        while waiting or links:
            folder = waiting.popleft() if waiting else links.popleft()
            identity = identity_of(folder)
            if identity is None:
                self._names(folder)  # which knows why
            if identity is None or identity in seen or not is_folder(folder):
                continue
            seen.add(identity)
            yield folder
            names = {name: inner for name, inner in sorted(self._names(folder).items()) if not name.startswith(".")}
            for inner in (folder / name for name, is_inner in names.items() if is_inner):
                (links if is_link(inner) else waiting).append(inner)
            if not only:
                yield from (folder / name for name, is_inner in names.items() if not is_inner)

    def _names(self, folder: Location) -> dict[str, bool]:
        """Return the names in a folder, and whether each is a folder; nothing if it is none, or cannot be listed."""
        try:
            found = names_in(folder) if isinstance(folder, Path) or is_folder(folder) else {}
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                self.unreadable.append(f"{quoted(str(folder))} ({error.strerror})")
            return {}
        self.left -= len(found) + _FOLDER_COST
        if self.left < 0:
            message = f"{quoted(self.name)} looks at more than {MOST_NAMES:,} files and folders, now in"
            hint = "begin the pattern with more of the path; is there a link to a large folder, or back to one above?"
            raise InputRefused(f"{message} {quoted(str(folder))}", hint=hint)
        return found


def _matcher(part: str, *, literal: bool) -> Callable[[str], object]:
    """Return whether a name matches one part of a pattern; a hidden one only if the part begins with a dot, too."""
    if literal:
        return part.__eq__
    pattern = re.compile(translate(part))
    return lambda name: pattern.match(name) if part.startswith(".") or not name.startswith(".") else None
