"""From a name on the command line to the files and folders that it means: one of that name, or all that match it."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from ema_cli.naming import natural_key
from ema_cli.storage.locations import Location, is_folder, locate, names_in
from ema_cli.storage.url import Url

_MAGIC = re.compile(r"[*\[]")
"""What makes a pattern of a URL; a question mark begins the query of one."""
_ROOT_PARTS = 2
"""Parts of a URL that are no names in a folder: the scheme, and the bucket or host."""


def matches(name: str) -> list[Location]:
    """Return the one file or folder of that name or, if there is none and it is a pattern, all that match.

    Raises:
        OSError: the system cannot look it up.

    """
    location = locate(name)
    if isinstance(location, Url):
        return _matching_urls(name) if _MAGIC.search(name) else [location]
    if location.exists() or not glob.has_magic(name):
        return [location]
    pattern = str(location) + ("/" if name.endswith("/") else "")  # a slash at the end means folders
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - a pattern
    return [locate(match) for match in sorted(found, key=natural_key)]


def _matching_urls(pattern: str) -> list[Location]:
    """Return what matches a pattern in a store, which lists one folder at a time."""
    parts = Url(pattern).parts
    found: list[Location] = [Url(*parts[:_ROOT_PARTS])]
    for part in parts[_ROOT_PARTS:]:
        found = [match for folder in found if is_folder(folder) for match in _matching_names(folder, part)]
    if pattern.endswith("/"):
        found = [match for match in found if is_folder(match)]
    return sorted(dict.fromkeys(found), key=lambda match: natural_key(str(match)))


def _matching_names(folder: Location, part: str) -> Iterator[Location]:
    """Yield what one part of a pattern means in one folder; ``**`` means the folder and all below it."""
    names = names_in(folder)
    if part != "**":
        yield from (folder / name for name in names if name == part or (fnmatchcase(name, part) and name[0] != "."))
        return
    yield folder
    for name, inner in names.items():
        if inner and name[0] != ".":
            yield from _matching_names(folder / name, part)
