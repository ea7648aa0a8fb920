"""What is in a folder without checkpoints: files of other formats, and checkpoints with an unusual suffix.

One file of each suffix, or of each form of names without one, is opened, in the folder and in the first folders inside
it. Only errors lead here.
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.formats.file import read_file
from ema_cli.formats.file_names import SUFFIXES, TRAINER_STATE
from ema_cli.formats.folder import Folder
from ema_cli.formats.foreign_formats import ForeignFile
from ema_cli.name_numbers import name_form
from ema_cli.naming import natural_key
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, is_file, is_folder, literal, open_source
from ema_cli.text import quoted, safe_text

_MOST_KINDS = 12
"""Suffixes, or forms of names without one, of which a file is opened, per folder."""
_MOST_INNER = 3
"""Folders inside that are looked into."""


@record
class OtherFiles:
    """Files with one suffix in a folder."""

    line: str = ""
    """Which format they have; empty if they are checkpoints."""
    next_step: str = ""
    pattern: str = ""
    """Matches these files, if they are checkpoints."""


def other_files(location: Location) -> Iterator[OtherFiles]:
    """Yield the kinds of files in a folder that are of another format, or checkpoints with an unusual suffix."""
    if not is_folder(location):
        return
    with suppress(InputRefused):
        folder = Folder(location)
        for inner in (folder, *map(folder.inside, sorted(folder.folders, key=natural_key)[:_MOST_INNER])):
            by_pattern: dict[str, list[str]] = defaultdict(list)
            for name in sorted(inner.files, key=natural_key):
                suffix = PurePosixPath(name).suffix
                if not name.startswith(".") and suffix.lower() not in SUFFIXES and not TRAINER_STATE.search(name):
                    by_pattern[f"*{glob.escape(suffix)}" if suffix else _form(name)].append(name)
            for pattern, names in list(by_pattern.items())[:_MOST_KINDS]:
                found = _kind_of(inner.location, pattern, names)
                if found is not None:
                    yield found


def _form(name: str) -> str:
    """Return the pattern of a name without a suffix: ``m-*`` for ``m-100``."""
    return "*".join(map(glob.escape, name_form(name)))


def _kind_of(location: Location, pattern: str, names: Sequence[str]) -> OtherFiles | None:
    """Return what the first of several files is; ``None`` if nothing is known about it."""
    path = location / names[0]
    if not is_file(path):
        return None
    try:
        with open_source(path) as source:
            read_file(source, (), LayoutPool())
    except ForeignFile as foreign:
        more = f" (and {len(names) - 1:,} more {safe_text(pattern)})" if len(names) > 1 else ""
        line = f"{quoted(str(path))}{more} is {foreign.kind}"
        return OtherFiles(line=line, next_step=foreign.hint)
    except EmaAvgError:
        return None
    return OtherFiles(pattern=f"{literal(location)}/{pattern}") if "*" in pattern else None
