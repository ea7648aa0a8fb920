"""What is named like the members of a series, and is none: another suffix, or a folder without a checkpoint.

One file of each suffix is opened, to know whether these are checkpoints or other files, such as images of each epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from ema_cli.errors import EmaAvgError, InputRefused, RunWarning
from ema_cli.formats.file import read_file
from ema_cli.formats.file_names import SUFFIXES
from ema_cli.formats.folder import Folder
from ema_cli.formats.series_names import NAME_TO_USE, has_number
from ema_cli.name_numbers import canonical_name, name_form
from ema_cli.naming import natural_key
from ema_cli.records.series import Skipped
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import is_file, open_source
from ema_cli.text import quoted, regex, shortlist

_SUFFIX = regex(r"(?:\.[A-Za-z]\w{0,11}|~)+$")
_MOST_KINDS = 12
"""Suffixes of which a file is opened."""


def missed_members(folder: Folder, series: Sequence[str], known: Collection[str]) -> Iterator[Skipped | RunWarning]:
    """Yield what has the form of the names of a ``series``, but another number; a checkpoint with a warning.

    Args:
        folder: the run.
        series: names of the members.
        known: further names that need no word.

    """
    members = [_SUFFIX.sub("", name) for name in series if has_number(name)]
    forms, taken = {name_form(name) for name in members}, {canonical_name(name) for name in members}
    kinds: dict[str, list[str]] = defaultdict(list)
    empty: list[str] = []
    for name in sorted({*folder.files, *folder.folders} - {*known, *series}, key=natural_key):
        bare = name if name in folder.folders else _SUFFIX.sub("", name)
        if name.startswith(".") or name_form(bare) not in forms or canonical_name(bare) in taken:
            continue
        if name in folder.folders:
            yield Skipped(path=folder.location / name, reason="a folder without a checkpoint, named like the series")
            empty.extend([name] if _is_empty(folder, name) else [])
        else:
            kinds[name.removeprefix(bare)].append(name)
    if empty:
        message = f"skipped empty folders that are named like the series: {shortlist(map(quoted, empty))}"
        yield RunWarning(code="unusable-left-out", message=message, hint="perhaps a download or a save failed")
    for suffix, names in list(kinds.items())[:_MOST_KINDS]:
        yield from _of_suffix(folder, suffix, names)


def _of_suffix(folder: Folder, suffix: str, names: Sequence[str]) -> Iterator[Skipped | RunWarning]:
    """Yield the files with one suffix, if they are checkpoints, or may be such that were not finished."""
    is_checkpoint = _is_checkpoint(folder, names[0])
    if is_checkpoint or any(part in suffix.lower() for part in SUFFIXES):
        reason = f"named like the series, but with another suffix {NAME_TO_USE}"
        yield from (Skipped(path=folder.location / name, reason=reason) for name in names)
    if is_checkpoint:
        kind = f"the suffix {quoted(suffix)}" if suffix else "no suffix"
        message = (
            f"skipped checkpoints that are named like the series, but have {kind}: {shortlist(map(quoted, names))}"
        )
        yield RunWarning(code="unusable-left-out", message=message, hint="name all of them by a quoted pattern")


def _is_empty(folder: Folder, name: str) -> bool:
    try:
        inside = folder.inside(name)
    except InputRefused:
        return False
    return not (inside.files or inside.folders)


def _is_checkpoint(folder: Folder, name: str) -> bool:
    path = folder.location / name
    try:
        if not is_file(path):
            return False
        with open_source(path) as source:
            read_file(source, (), LayoutPool())
    except EmaAvgError:
        return False
    return True
