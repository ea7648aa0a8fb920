"""A cache of small blocks of remote objects: structure is read in small pieces, some of them repeatedly.

All objects share one limit, so the memory does not grow with their number.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

Pieces = Sequence[bytes | bytearray]
"""The bytes of a range, in order, as a store sent them."""
BLOCK_BYTES = 1 << 16
_MOST_BLOCKS = 256
_BLOCKS: OrderedDict[tuple[int, int], bytes] = OrderedDict()
"""By the number of the object and the beginning of the block, the least recently read first."""
_LOCK = threading.Lock()
_NUMBERS = itertools.count()


class BlockCache:
    """The cached blocks of one object. Thread-safe."""

    def __init__(self, fetch: Callable[[int, int], Pieces], size: int, first: bytes = b"") -> None:
        """``first`` are the first bytes, if they were fetched already."""
        self._fetch = fetch
        self._size = size
        self._number = next(_NUMBERS)
        if first and len(first) == self._end(0):
            self._add(0, first)

    def has(self, begin: int, end: int) -> bool:
        """Whether a range is in one cached block."""
        first = self._begin(begin)
        with _LOCK:
            return end <= self._end(first) and (self._number, first) in _BLOCKS

    def read(self, offset: int, view: memoryview) -> int:
        """Fill the beginning of ``view`` from the block at ``offset``; return the number of bytes."""
        begin = self._begin(offset)
        block = self._block(begin)
        piece = block[offset - begin : offset - begin + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def _begin(self, offset: int) -> int:
        """Return where the block with a byte begins. The last one has the rest too: a directory is at the end."""
        last = max(0, self._size // BLOCK_BYTES - 1) * BLOCK_BYTES
        return min(offset - offset % BLOCK_BYTES, last)

    def _end(self, begin: int) -> int:
        return self._size if self._size - begin < 2 * BLOCK_BYTES else begin + BLOCK_BYTES

    def _block(self, begin: int) -> bytes:
        key = self._number, begin
        with _LOCK:
            block = _BLOCKS.get(key)
            if block is not None:
                _BLOCKS.move_to_end(key)
                return block
        block = b"".join(self._fetch(begin, self._end(begin)))
        self._add(begin, block)
        return block

    def _add(self, begin: int, block: bytes) -> None:
        with _LOCK:
            _BLOCKS[self._number, begin] = block
            while len(_BLOCKS) > _MOST_BLOCKS:
                _BLOCKS.popitem(last=False)

    def close(self) -> None:
        """Drop the blocks of this object."""
        with _LOCK:
            for key in [key for key in _BLOCKS if key[0] == self._number]:
                del _BLOCKS[key]
