"""Configuration files: the nearest one, searched upwards from the working directory, or the one of ``--config``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ema_cli.errors import UsageError
from ema_cli.text import quoted

FILE, PYPROJECT, TABLE = "ema-avg.toml", "pyproject.toml", "ema-avg"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A configuration file and its settings."""

    path: Path
    table: Mapping[str, Any]


def find_file(folder: Path) -> ConfigFile | None:
    """Return the nearest configuration file, in ``folder`` or above it.

    In one folder ``ema-avg.toml`` comes before ``pyproject.toml``, which counts only if it has ``[tool.ema-avg]``.

    Raises:
        UsageError: a file that has to be read cannot be, or is not TOML.

    """
    for place in (folder, *folder.parents):
        if os.path.isfile(place / FILE):  # noqa: PTH113 - False in a folder without permission, where pathlib raises
            return ConfigFile(path=place / FILE, table=parse_toml(place / FILE))
        if os.path.isfile(place / PYPROJECT):  # noqa: PTH113
            found = _read_pyproject(place / PYPROJECT)
            if found is not None:
                return found
    return None


def read_file(path: Path) -> ConfigFile:
    """Read the file that ``--config`` names: ``[tool.ema-avg]`` of a ``pyproject.toml``, or the whole of another.

    Raises:
        UsageError: it cannot be read, is not TOML, or has no such table.

    """
    found = _read_pyproject(path) if path.name == PYPROJECT else ConfigFile(path=path, table=parse_toml(path))
    if found is None:
        raise UsageError(f"{quoted(str(path))} has no table [tool.{TABLE}]", hint="--config ema-avg.toml")
    return found


def _read_pyproject(path: Path) -> ConfigFile | None:
    """Return the table of a ``pyproject.toml``, which is parsed only if it has the word ema-avg."""
    tool = parse_toml(path).get("tool") if TABLE in _text(path) else None
    if not isinstance(tool, dict) or TABLE not in tool:
        return None
    if not isinstance(tool[TABLE], dict):
        raise UsageError(f"{quoted(str(path))}: tool.{TABLE} is not a table", hint=f"[tool.{TABLE}]")
    return ConfigFile(path=path, table=tool[TABLE])


def parse_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        UsageError: it cannot be read, or is not TOML.

    """
    import tomllib  # noqa: PLC0415 - needed only if there is a file

    text = _text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{quoted(str(path))} is not TOML: {error}", hint="half-life = 500") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{quoted(str(path))} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{quoted(str(path))} is not TOML: it is not UTF-8 text") from error
