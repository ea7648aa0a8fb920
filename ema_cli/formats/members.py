"""Files inside a checkpoint folder: read as the files that they are, with their names in what is said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.file import read_file
from ema_cli.formats.folder import Folder
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.formats.structure import Structure
from ema_cli.formats.wording import refusal_of
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted

_MOST_JSON_BYTES = 1 << 25
_MOST_JSON_ENTRIES = 500_000
"""Both are several times what the largest models have, and bound the memory of a parse to 500 MB."""


def read_member(folder: Folder, name: str, key: str | None, pool: LayoutPool) -> tuple[int, Structure]:
    """Read the structure of one file of a folder; return the number of the file, and the structure.

    Raises:
        InputRefused: it cannot be used; the message names the file.

    """
    number = folder.open(name)
    try:
        return number, read_file(folder.sources[number], key, pool)
    except InputRefused as refused:
        raise refusal_of(name, refused) from refused


def read_only_member(folder: Folder, name: str, key: str | None, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint all of whose tensors lie in one file of a folder.

    Raises:
        InputRefused: it cannot be used; the message names the file.

    """
    number, structure = read_member(folder, name, key, pool)
    records = {number: structure.records[0]} if structure.records else {}
    return replace(structure, files=(number,) * len(structure.offsets), records=records)


def read_json(folder: Folder, name: str, pool: LayoutPool) -> tuple[dict[str, object], bytes]:
    """Read a JSON object of a folder; return it, and a hash of its bytes.

    Raises:
        InputRefused: it is none, or has more in it than such a file has.

    """
    return parse_json(folder.read(name, most=_MOST_JSON_BYTES), name, pool)


def parse_json(raw: bytes, name: str, pool: LayoutPool, *, nan: bool = False) -> tuple[dict[str, object], bytes]:
    """Parse a JSON object of a folder, once for all checkpoints that have it; return it, and a hash of its bytes.

    Raises:
        InputRefused: it is none, or has more in it than such a file has.

    """
    digest = hashlib.sha256(raw).digest()
    try:
        made = pool.branch(name).remember(digest, lambda: parse_object(raw, most=_MOST_JSON_ENTRIES, nan=nan))
    except JsonError as error:
        raise InputRefused(f"{quoted(name)} is damaged: it {error}") from error
    return made, digest


def joint_digest(digests: Iterable[bytes]) -> bytes:
    """Return one hash of the bytes that were parsed in several files."""
    return hashlib.sha256(b"".join(digests)).digest()


def beside(folder: Folder, used: Sequence[str]) -> tuple[str, ...]:
    """Return the names of what else lies in a folder: not opened, not ``used``, and not hidden."""
    names = [*folder.files, *(f"{name}/" for name in folder.folders)]
    taken = {*folder.opened, *used, *(f"{name}/" for name in used)}
    return tuple(sorted(name for name in names if name not in taken and not name.startswith(".")))
