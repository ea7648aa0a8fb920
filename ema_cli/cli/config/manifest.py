"""The manifest of a batch: runs with their own options, in TOML.

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
from pathlib import Path
from typing import Any

from ema_cli.cli.batch_options import BatchCommandLine
from ema_cli.cli.config.settings import ONLY_FLAGS, Settings, from_table
from ema_cli.cli.config.toml_file import read_toml
from ema_cli.errors import UsageError
from ema_cli.naming import did_you_mean
from ema_cli.options.declaration import Option, declared
from ema_cli.record import record
from ema_cli.storage.locations import expanded, full_name, locate
from ema_cli.storage.url import Url
from ema_cli.text import quoted

OF_THE_BATCH = {one.key for one in declared(BatchCommandLine)} - {"ci", *ONLY_FLAGS}  # ci has no effect in a job
"""Options of the whole batch, which a job cannot have."""
_PLACES = ("run", "paths")
_TABLES = ("job", "defaults")


@record
class ManifestJob:
    """One ``[[job]]``."""

    place: str
    """Where it is written, for messages: ``jobs.toml, job 3``."""
    run: str
    """The folder that ``{run}`` stands for."""
    paths: tuple[str, ...]
    layers: tuple[Settings, Settings]
    """The options in its table, and those in ``[defaults]``."""


def read_manifest(path: Path, options: Sequence[Option]) -> list[ManifestJob]:
    """Return the jobs of a manifest.

    Args:
        path: the TOML file.
        options: the configurable options of ``ema-avg batch``; a job may have those of ``ema-avg average``.

    Raises:
        UsageError: it cannot be read, is not TOML, or has keys or values that no job can have.

    """
    document = read_toml(path)
    for name in document:
        if name not in _TABLES:
            hint = did_you_mean(name, _TABLES) or "[[job]] tables, and [defaults]"
            raise UsageError(f"{quoted(str(path))}: there is no table {quoted(name)}", hint=hint)
    tables = document.get("job", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{quoted(str(path))} has no [[job]] tables", hint='[[job]] with run = "runs/a"')
    usable = [one for one in options if one.key not in OF_THE_BATCH]
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        raise UsageError(f"{quoted(str(path))}: defaults is not a table", hint="[defaults]")
    settings = _settings(defaults, usable, path, "defaults")
    return [_job(table, usable, path, f"job {number}", settings) for number, table in enumerate(tables, start=1)]


def _job(table: dict[str, Any], options: Sequence[Option], path: Path, place: str, defaults: Settings) -> ManifestJob:
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
        raise UsageError(f"{where}: {named[0]} has a character that no path can have")
    own = {name: value for name, value in table.items() if name not in _PLACES}
    run = expanded(paths[0])  # as it was written; isdir returns False for an impossible name, where pathlib raises
    if named == ["paths"] and not os.path.isdir(run):  # noqa: PTH112
        location = locate(run)
        run = full_name(location.parent) if isinstance(location, Url) else os.path.dirname(run) or "."  # noqa: PTH120
    layers = (_settings(own, options, path, place), defaults)
    return ManifestJob(place=where, run=run, paths=tuple(paths), layers=layers)


def _settings(table: dict[str, Any], options: Sequence[Option], path: Path, place: str) -> Settings:
    for name in table:
        plain = name.replace("_", "-")
        if plain in OF_THE_BATCH:
            message = f"{quoted(str(path))}, {place}: {quoted(name)} is an option of the whole batch"
            raise UsageError(message, hint=f"ema-avg batch --{plain} ...")
    return from_table(table, options, path, place)
