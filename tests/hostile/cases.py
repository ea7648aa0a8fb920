"""A case of the catalogue: how a file or a folder is made, and the verdict that it must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

OK = 0
USAGE = 2
REFUSED = 3
MISSING = 7

Maker = Callable[[Path], object]
"""Creates the file or folder at a path where nothing exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input and its verdict."""

    name: str
    """Of the file or folder, unique in the catalogue."""
    make: Maker
    code: int = REFUSED
    """Exit code of ``ema-avg plan``."""
    word: str = ""
    """Text that the message must contain."""


Bytes = bytes | Callable[[], bytes]
"""The bytes of a file; large ones are made on demand."""


def of_bytes(group: str, suffix: str, table: Mapping[str, tuple[Bytes, str]], *, code: int = REFUSED) -> list[Case]:
    """Return cases of files with given bytes, each with a word of its message."""
    return [
        Case(name=file_name(group, name, suffix), make=_writer(data), code=code, word=word)
        for name, (data, word) in table.items()
    ]


def file_name(group: str, name: str, suffix: str) -> str:
    """Return the name of a file without spaces."""
    return f"{group}_{name.replace(' ', '_')}{suffix}"


def _writer(data: Bytes) -> Maker:
    return lambda path: path.write_bytes(data() if callable(data) else data)
