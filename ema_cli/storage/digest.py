"""The SHA-256 of one file or of several; and reading with announcements, so that a disk or a store stays busy."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TypeVar

from ema_cli.storage.source import ByteSource

Piece = TypeVar("Piece")
_PIECE_BYTES = 1 << 22


def with_lookahead(
    pieces: Iterable[Piece], announce: Callable[[Piece], None], size: Callable[[Piece], int], prefetch_bytes: int
) -> Iterator[Piece]:
    """Yield every piece in order, after announcing it and the pieces up to ``prefetch_bytes`` after it."""
    waiting: deque[Piece] = deque()
    waiting_bytes = 0
    for piece in pieces:
        announce(piece)
        waiting.append(piece)
        waiting_bytes += size(piece)
        while waiting_bytes > prefetch_bytes:
            waiting_bytes -= size(waiting[0])
            yield waiting.popleft()
    yield from waiting


def sha256_of(source: ByteSource, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the digest of all bytes of ``source``; ``on_bytes`` is called with the size of each piece.

    Raises:
        InputChanged: the bytes cannot be read completely.

    """
    digest = hashlib.sha256()
    size = source.size()
    ranges = ((begin, min(_PIECE_BYTES, size - begin)) for begin in range(0, size, _PIECE_BYTES))
    for begin, length in with_lookahead(
        ranges, lambda one: source.will_need(*one), lambda one: one[1], source.prefetch_bytes
    ):
        piece = source.read(begin, length)
        digest.update(piece)
        on_bytes(len(piece))
    return digest.hexdigest()


def sha256_of_all(sources: Sequence[ByteSource], on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Read all files and return their joint digest, see ``digest_of_all``.

    Raises:
        InputChanged: the bytes cannot be read completely.

    """
    return digest_of_all({PurePath(source.name).name: sha256_of(source, on_bytes) for source in sources})


def digest_of_all(digests: Mapping[str, str]) -> str:
    """Return the digest of a file; of several files, the digest of the output of ``sha256sum`` in the order of names.

    ``digests`` are the SHA-256 of each file, by name.
    """
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
