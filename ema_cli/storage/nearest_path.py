"""The existing paths that are spelled like one that does not exist. Only errors lead here."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePath

from ema_cli.naming import did_you_mean, natural_key
from ema_cli.text import quoted, shortlist

_MOST_NAMES = 100_000
"""Names of a folder that are looked at."""
_MOST_SHOWN = 4


def nearest_paths(path: PurePath) -> str:
    """Return a hint with the paths whose first part that does not exist is spelled otherwise; empty if there is none.

    Of a pattern without a match, the hint may be what the folder contains. A store is not searched.
    """
    if not isinstance(path, Path):
        return ""
    here, parts = Path(path.anchor), path.relative_to(path.anchor).parts
    for number, part in enumerate(parts):
        if os.path.lexists(here / part):
            here /= part
            continue
        names = _names_in(here, hidden=part.startswith("."))
        return _instead(here, part, parts[number + 1 :], names) or (
            _contents(here, names) if glob.has_magic(part) else ""
        )
    return ""


def _instead(here: Path, part: str, below: Sequence[str], names: Sequence[str]) -> str:
    """Return the hint for one part of a path. Of names with its suffix, which may be long, the rest is compared."""

    def whole(name: str) -> str:
        path = (here / name).joinpath(*below)
        return quoted(str(path if os.path.lexists(path) or glob.has_magic(str(path)) else here / name))

    suffix = PurePath(part).suffix
    stems = {name.removesuffix(suffix): name for name in names if suffix and name.endswith(suffix)}
    others = [name for name in names if not (suffix and name.endswith(suffix))]
    stem = part.removesuffix(suffix)
    return did_you_mean(stem, stems, shown=lambda one: whole(stems[one])) or did_you_mean(part, others, shown=whole)


def _contents(folder: Path, names: Sequence[str]) -> str:
    listed = shortlist(map(quoted, sorted(names, key=natural_key)), most=_MOST_SHOWN)
    return f"{quoted(str(folder))} contains {listed}" if names else ""


def _names_in(folder: Path, *, hidden: bool) -> list[str]:
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        names = (entry.name for entry in islice(entries, _MOST_NAMES))
        return [name for name in names if hidden or not name.startswith(".")]
    return []
