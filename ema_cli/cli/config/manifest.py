"""The manifest of a batch: runs with options of their own, in TOML.

[defaults]
half-life = 4

[[job]]
run = "runs/a"

[[job]]
paths = ["runs/b/ckpt_*.pt"]
output = "out/b.safetensors"
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ema_cli.cli.config.settings import Key, Settings, from_table
from ema_cli.cli.config.sources import parse_toml
from ema_cli.errors import UsageError
from ema_cli.text import quoted

OF_THE_BATCH = ("dry-run", "json", "quiet", "verbose", "no-color", "jobs", "index", "manifest")
"""Options that a job cannot have for itself."""
_PLACES = ("run", "paths")
_TABLES = ("job", "defaults")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestJob:
    """One ``[[job]]``."""

    place: str
    """Where it stands, for messages: ``jobs.toml, job 3``."""
    run: str
    """The folder that ``{run}`` stands for."""
    paths: tuple[str, ...]
    settings: Settings
    """Its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The jobs of a file."""

    defaults: Settings
    jobs: tuple[ManifestJob, ...]


def read_manifest(path: Path, keys: Sequence[Key]) -> Manifest:
    """Read a manifest.

    Args:
        path: of the file.
        keys: the options of the batch; a job may have those of the main job.

    Raises:
        UsageError: it cannot be read, is not TOML, or says what no job understands.

    """
    document = parse_toml(path)
    for name in document:
        if name not in _TABLES:
            close = get_close_matches(name, _TABLES, n=1)
            hint = f"did you mean {close[0]}?" if close else "[[job]] tables, and [defaults]"
            raise UsageError(f"{quoted(str(path))}: there is no table {quoted(name)}", hint=hint)
    tables = document.get("job", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{quoted(str(path))} has no [[job]] tables", hint='[[job]] with run = "runs/a"')
    usable = [key for key in keys if key.name not in OF_THE_BATCH]
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        raise UsageError(f"{quoted(str(path))}: defaults is not a table", hint="[defaults]")
    return Manifest(
        defaults=_settings(defaults, usable, path, "defaults"),
        jobs=tuple(_job(table, usable, path, f"job {number}") for number, table in enumerate(tables, start=1)),
    )


def _job(table: dict[str, Any], keys: Sequence[Key], path: Path, place: str) -> ManifestJob:
    where = f"{quoted(str(path))}, {place}"
    named = [name for name in _PLACES if name in table]
    if len(named) != 1:
        raise UsageError(
            f'{where}: it has {"both of" if named else "neither"} "run" and "paths"', hint='run = "runs/a"'
        )
    paths = [table["run"]] if named == ["run"] else table["paths"]
    if not isinstance(paths, list) or not paths or not all(isinstance(one, str) and one for one in paths):
        what = "text in quotes" if named == ["run"] else "a list of texts in quotes"
        raise UsageError(f"{where}: {named[0]} must be {what}", hint='run = "runs/a"')
    if any("\0" in one for one in paths):
        raise UsageError(f"{where}: {named[0]} has a character that no path has")
    own = {name: value for name, value in table.items() if name not in _PLACES}
    run = paths[0] if named == ["run"] else _folder_of(paths[0])
    return ManifestJob(place=where, run=run, paths=tuple(paths), settings=_settings(own, keys, path, place))


def _settings(table: dict[str, Any], keys: Sequence[Key], path: Path, place: str) -> Settings:
    for name in table:
        if name.replace("_", "-") in OF_THE_BATCH:
            plain = name.replace("_", "-")
            message = f"{quoted(str(path))}, {place}: {quoted(name)} is an option of the whole batch"
            raise UsageError(message, hint=f"ema-avg batch --{plain} ...")
    return from_table(table, keys, path, place)


def _folder_of(path: str) -> str:
    """Return the run that a path belongs to: itself if it is a folder, else the folder that it is in."""
    # Texts as they were written; of an impossible name isdir says no, where pathlib raises.
    return path if os.path.isdir(path) else os.path.dirname(path) or "."  # noqa: PTH112, PTH120
