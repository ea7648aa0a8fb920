"""The SHA-256 of a source, read in pieces, and that of several files together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from ema_cli.storage.readahead import with_lookahead
from ema_cli.storage.source import ByteSource

_PIECE_BYTES = 1 << 22


def sha256_of(source: ByteSource, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of all bytes of ``source``; ``on_bytes`` is told how many were read, piece by piece.

    Raises:
        InputChanged: the bytes cannot be read to the end.

    """
    digest = hashlib.sha256()
    size = source.size()
    ranges = ((begin, min(_PIECE_BYTES, size - begin)) for begin in range(0, size, _PIECE_BYTES))
    for begin, length in with_lookahead(
        ranges, lambda one: source.will_need(*one), lambda one: one[1], source.ahead_bytes
    ):
        piece = source.read(begin, length)
        digest.update(piece)
        on_bytes(len(piece))
    return digest.hexdigest()


def sha256_of_all(sources: Sequence[ByteSource], on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of a file; of several, that of the lines that ``sha256sum`` prints for them in name order.

    Raises:
        InputChanged: the bytes cannot be read to the end.

    """
    return digest_of_all({PurePath(source.name).name: sha256_of(source, on_bytes) for source in sources})


def digest_of_all(digests: Mapping[str, str]) -> str:
    """Return the digest of a file; of several, that of the lines that ``sha256sum`` prints for them in name order.

    Args:
        digests: of each file its SHA-256, by name.

    """
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
