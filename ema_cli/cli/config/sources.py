"""Configuration files: the nearest one, searched upwards from the working directory, or the one of ``--config``."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ema_cli.cli.config.toml_file import OPEN_FLAGS, parse_toml, read_text, text_of, unreadable
from ema_cli.cli.config.trust import NAMED, why_ignored
from ema_cli.errors import RunWarning, UsageError
from ema_cli.record import record
from ema_cli.text import quoted

FILE, PYPROJECT, TABLE = "ema-avg.toml", "pyproject.toml", "ema-avg"
CONFIG_IGNORED = "config-ignored"
"""The code of the warning about a file that was found and not obeyed."""


@record
class ConfigFile:
    """A configuration file and its settings."""

    path: Path
    table: Mapping[str, Any]
    found_from: Path | None = None
    """The working directory, if the file was merely found: then it cannot set everything."""


@record
class ConfigSearch:
    """The result of the search for a configuration file."""

    file: ConfigFile | None
    ignored: tuple[RunWarning, ...] = ()
    """Nearer files that are not obeyed: of another user, or writable for all."""


def find_file(folder: Path) -> ConfigSearch:
    """Search for the nearest configuration file that is obeyed, in ``folder`` and above it.

    In one folder ``ema-avg.toml`` comes before ``pyproject.toml``, which counts only if it has ``[tool.ema-avg]``. A
    file that is not obeyed is as good as absent, so that nobody can hide the file above it; there is a warning.

    Raises:
        UsageError: a file that has to be read cannot be, or is not TOML.
        OSError: the system has no descriptors or memory left.

    """
    ignored: list[RunWarning] = []
    for place in (folder, *folder.parents):
        try:
            descriptor = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            continue  # removed, or not to be searched
        with closing(_Folder(place, descriptor, folder)) as opened:
            for name in (FILE, PYPROJECT):
                found = opened.examine(name)
                if isinstance(found, ConfigFile):
                    return ConfigSearch(file=found, ignored=tuple(ignored))
                ignored += [found] if found else []
    return ConfigSearch(file=None, ignored=tuple(ignored))


class _Folder:
    """An open folder of the search. What is examined is what is read: both by descriptor."""

    def __init__(self, path: Path, descriptor: int, start: Path) -> None:
        self._path = path
        self._descriptor = descriptor
        self._start = start

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    def examine(self, name: str) -> ConfigFile | RunWarning | None:
        """Return the configuration in a file, or a warning if it is not obeyed; ``None`` if there is none.

        Raises:
            UsageError: it would be obeyed, but cannot be read.

        """
        path = self._path / name
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            is_link = stat.S_ISLNK(status.st_mode)
            status = os.stat(name, dir_fd=self._descriptor) if is_link else status
        except OSError:  # there is none, or a link that leads nowhere
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            descriptor = os.open(name, OPEN_FLAGS | (0 if is_link else os.O_NOFOLLOW), dir_fd=self._descriptor)
        except OSError as error:
            reason = self._why_ignored(status, is_link=is_link)
            if reason:
                return _warning(path, reason)
            raise unreadable(path, error) from error
        try:
            return self._read(descriptor, path, is_link=is_link)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, path: Path, *, is_link: bool) -> ConfigFile | RunWarning | None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # replaced since
            return None
        reason = self._why_ignored(status, is_link=is_link)
        try:
            table = _table(read_text(descriptor, path), path)
        except UsageError:
            if not reason:
                raise
            return _warning(path, reason)
        if table is None:
            return None
        return _warning(path, reason) if reason else ConfigFile(path=path, table=table, found_from=self._start)

    def _why_ignored(self, file: os.stat_result, *, is_link: bool) -> str:
        return why_ignored(file, os.fstat(self._descriptor), user=os.geteuid(), is_link=is_link)


def _warning(path: Path, reason: str) -> RunWarning:
    message = f"the configuration file {quoted(str(path))} is ignored: {reason}"
    return RunWarning(code=CONFIG_IGNORED, message=message, hint=NAMED)


def read_file(path: Path) -> ConfigFile:
    """Read the file that ``--config`` names: ``[tool.ema-avg]`` of a ``pyproject.toml``, or the whole of another.

    Raises:
        UsageError: it cannot be read, is not TOML, or has no such table.

    """
    table = _table(text_of(path), path)
    if table is None:
        raise UsageError(f"{quoted(str(path))} has no table [tool.{TABLE}]", hint="--config ema-avg.toml")
    return ConfigFile(path=path, table=table)


def _table(text: str, path: Path) -> Mapping[str, Any] | None:
    """Return the settings in a file. A ``pyproject.toml`` is parsed only if it has the word ema-avg.

    The result is ``None`` for a ``pyproject.toml`` without the table.

    Raises:
        UsageError: it is not TOML.

    """
    if path.name != PYPROJECT:
        return parse_toml(text, path)
    tool = parse_toml(text, path).get("tool") if TABLE in text else None
    if not isinstance(tool, dict) or TABLE not in tool:
        return None
    table = tool[TABLE]
    if not isinstance(table, dict):
        raise UsageError(f"{quoted(str(path))}: tool.{TABLE} is not a table", hint=f"[tool.{TABLE}]")
    return table
