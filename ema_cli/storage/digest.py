"""The SHA-256 of a source, read in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ema_cli.storage.source import ByteSource

_PIECE_BYTES = 1 << 22


def sha256_of(source: ByteSource, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of all bytes of ``source``; ``on_bytes`` is told how many were read, piece by piece.

    Raises:
        InputChanged: the bytes cannot be read to the end.

    """
    digest = hashlib.sha256()
    for offset in range(0, source.size(), _PIECE_BYTES):
        piece = source.read(offset, min(_PIECE_BYTES, source.size() - offset))
        digest.update(piece)
        on_bytes(len(piece))
    return digest.hexdigest()
