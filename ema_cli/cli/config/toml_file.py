"""TOML text: at most 1 MB is read of whatever a name refers to, and parsing it takes seconds at most.

tomllib walks the whole key for every part of a dotted key, so a megabyte of one key would take hours: such a key is
refused. Numbers, nesting and the number of keys are cheap within a megabyte.
"""

from __future__ import annotations

import os
import select
import stat
import time
from functools import partial
from pathlib import Path
from typing import Any

from ema_cli.errors import UsageError
from ema_cli.storage.nearest_path import nearest_paths
from ema_cli.text import quoted, regex

MOST_BYTES = 1_000_000
OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Opening never waits: a pipe without a writer is open at once."""
PIPE_SECONDS = 10.0
"""How long a pipe, such as ``<(jq ...)``, may take to deliver its text."""
_MOST_PARTS = 30
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = regex(rf"(?<![\w\\-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_MOST_PARTS}}}")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file that somebody named: a file, a pipe, or an empty device.

    Raises:
        UsageError: it cannot be read, is too large, or is not TOML.

    """
    return parse_toml(text_of(path), path)


def text_of(path: Path) -> str:
    """Return the text of a file that somebody named; see ``read_text``."""
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    try:
        return read_text(descriptor, path)
    finally:
        os.close(descriptor)


def read_text(descriptor: int, path: Path) -> str:
    """Return the text of an open file.

    Raises:
        UsageError: it cannot be read, has more than ``MOST_BYTES``, or is not UTF-8.

    """
    try:
        content = _read(descriptor, path)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > MOST_BYTES:
        message = f"{quoted(str(path))} is larger than {MOST_BYTES // 1_000_000} MB"
        raise UsageError(message, hint="--config FILE names another")
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{quoted(str(path))} is not TOML: it is not UTF-8 text") from error


def _read(descriptor: int, path: Path) -> bytes:
    """Return the first bytes, one more than ``MOST_BYTES`` if there are more."""
    content = bytearray()
    deadline = time.monotonic() + PIPE_SECONDS
    waits = stat.S_ISFIFO(os.fstat(descriptor).st_mode)  # nobody may have opened it for writing yet
    while len(content) <= MOST_BYTES:
        try:
            part = os.read(descriptor, MOST_BYTES + 1 - len(content))
        except BlockingIOError:
            waits = True
        else:
            content += part
            if part:
                continue
            if content or not waits:
                break
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise UsageError(f"{quoted(str(path))} cannot be read: nothing was written to it for {PIPE_SECONDS:g} s")
        waits = False
    return bytes(content)


def unreadable(path: Path, error: Exception) -> UsageError:
    """Return the error for a file that cannot be opened or read."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    hint = partial(nearest_paths, path) if isinstance(error, FileNotFoundError) else ""
    return UsageError(f"{quoted(str(path))} cannot be read: {reason}", hint=hint)


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Return the content of TOML text; ``path`` is for messages.

    Raises:
        UsageError: it is not TOML, or has a key of more than ``_MOST_PARTS`` parts.

    """
    import tomllib  # noqa: PLC0415 - needed only if there is a file

    if _LONG_KEY.search(text):
        raise UsageError(f"{quoted(str(path))} has a key of more than {_MOST_PARTS} parts", hint="half-life = 500")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{quoted(str(path))} is not TOML: {error}", hint="half-life = 500") from error
