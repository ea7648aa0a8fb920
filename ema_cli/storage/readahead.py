"""Announce pieces ahead of their turn, so that a disk or a store is at work while the one before is being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Piece = TypeVar("Piece")


def with_lookahead(
    pieces: Iterable[Piece], announce: Callable[[Piece], None], size: Callable[[Piece], int], ahead_bytes: int
) -> Iterator[Piece]:
    """Yield every piece in order, once it and those up to ``ahead_bytes`` behind it were announced.

    Args:
        pieces: what will be read.
        announce: tells the source of a piece.
        size: bytes of a piece.
        ahead_bytes: how far ahead it pays to announce.

    """
    waiting: deque[Piece] = deque()
    waiting_bytes = 0
    for piece in pieces:
        announce(piece)
        waiting.append(piece)
        waiting_bytes += size(piece)
        while waiting_bytes > ahead_bytes:
            waiting_bytes -= size(waiting[0])
            yield waiting.popleft()
    yield from waiting
