"""What a name on the command line means: one file or folder, or all that match a pattern, here and in a store."""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ema_cli.naming import natural_key
from ema_cli.storage.locations import Location, identity_of, is_folder, is_link, locate, names_in
from ema_cli.storage.url import Url

_ANY_DEPTH = "**"
"""This part of a pattern matches a folder and all folders below it."""
_MAGIC = re.compile(r"[*\[]")
"""Characters that make a URL a pattern; a question mark begins its query."""
_ROOT_PARTS = 2
"""Parts of a URL before the first folder: the scheme, and the bucket or host."""


def matches(name: str) -> list[Location]:
    """Return the file or folder of that name or, if there is none and it is a pattern, all that match.

    Raises:
        OSError: the system cannot look it up.

    """
    location = locate(name)
    if isinstance(location, Url):
        return _matching_urls(name) if _MAGIC.search(name) else [location]
    if location.exists() or not glob.has_magic(name):
        return [location]
    pattern = str(location) + ("/" if name.endswith("/") else "")  # a slash at the end means folders
    return [Path(match) for match in sorted(dict.fromkeys(_matching_paths(pattern)), key=natural_key)]


def _matching_paths(pattern: str) -> list[str]:
    """Return the matches of a pattern. Links to folders are followed, and every folder is searched once."""
    parts = pattern.split("/")
    if _ANY_DEPTH not in parts:
        return glob.glob(pattern)  # noqa: PTH207 - a pattern
    place = parts.index(_ANY_DEPTH)
    before, after = "/".join(parts[:place]), "/".join(parts[place + 1 :])
    roots = glob.glob(before) if before else ["/" if pattern.startswith("/") else "."]  # noqa: PTH207
    folders = [str(folder) for root in roots for folder in _below(Path(root))]
    if pattern.endswith(f"{_ANY_DEPTH}/"):
        return folders
    inner = after or "*"
    found = [match for folder in folders for match in _matching_paths(str(Path(glob.escape(folder)) / inner))]
    return found if after else [*folders, *found]


def _below(root: Path) -> Iterator[Path]:
    """Yield a folder and all below it that are not hidden, each once, by a name without links if it has one."""
    waiting, links = deque([root]), deque[Path]()
    seen = set[object]()
    while waiting or links:
        folder = waiting.popleft() if waiting else links.popleft()
        identity = identity_of(folder)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        yield folder
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
        except OSError:
            continue
        for inner in (folder / name for name in names if not name.startswith(".") and (folder / name).is_dir()):
            (links if is_link(inner) else waiting).append(inner)


def _matching_urls(pattern: str) -> list[Location]:
    """Return the matches of a pattern in a store, which lists one folder at a time."""
    parts = Url(pattern).parts
    found: list[Location] = [Url(*parts[:_ROOT_PARTS])]
    for part in parts[_ROOT_PARTS:]:
        found = [match for folder in found if is_folder(folder) for match in _matching_names(folder, part)]
    if pattern.endswith("/"):
        found = [match for match in found if is_folder(match)]
    return sorted(dict.fromkeys(found), key=lambda match: natural_key(str(match)))


def _matching_names(folder: Location, part: str) -> Iterator[Location]:
    """Yield the matches of one part of a pattern in one folder."""
    names = names_in(folder)
    if part != _ANY_DEPTH:
        yield from (folder / name for name in names if name == part or (fnmatchcase(name, part) and name[0] != "."))
        return
    yield folder
    for name, inner in names.items():
        if inner and name[0] != ".":
            yield from _matching_names(folder / name, part)
