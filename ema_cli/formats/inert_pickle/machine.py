"""The state of the machine that reads a pickle: the bytes and the position, the stack, the memo, the memory spent."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ema_cli.formats.inert_pickle.costs import SLOT_BYTES
from ema_cli.formats.inert_pickle.values import Global, PersistentLoad, PickleError, PickleTruncated, Reduce

unsigned4 = struct.Struct("<L").unpack_from
"""Returns the four-byte number at a position, in a tuple."""


class Machine:
    """The bytes, the stack and the memo of one pickle, and the memory that was counted.

    The arguments are those of ``read_pickle``.
    """

    __slots__ = (
        "data",
        "globals",
        "marks",
        "memo",
        "most_bytes",
        "persistent_load",
        "position",
        "reduce",
        "sparse_memo",
        "spent",
        "stack",
        "tuple_end",
    )

    def __init__(
        self, data: bytes, start: int, reduce: Reduce, persistent_load: PersistentLoad, most_bytes: int
    ) -> None:
        self.data = data
        self.position = start
        self.reduce = reduce
        self.persistent_load = persistent_load
        self.most_bytes = most_bytes
        self.spent = len(data)
        self.stack: list[object] = []
        """The values pushed since the last mark."""
        self.marks: list[list[object]] = []
        """The values pushed before that mark, and before each mark below it."""
        self.memo: list[object] = []
        self.sparse_memo: dict[int, object] = {}
        """Memo entries out of sequence, by number."""
        self.globals: dict[tuple[str, str], Global] = {}
        """One ``Global`` for each name."""
        self.tuple_end = -1
        """Position after the last ``TUPLE`` opcode."""

    def charge(self, size: int) -> None:
        """Count memory, before it is allocated if it may be much.

        Raises:
            PickleError: the limit is exceeded.

        """
        self.spent += size
        if self.spent > self.most_bytes:
            raise PickleError(f"its values would take more than {self.most_bytes:,} bytes of memory")

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        begin = self.position
        end = begin + length
        if end > len(self.data):
            raise PickleTruncated("it is truncated")
        self.position = end
        return self.data[begin:end]

    def byte(self) -> int:
        """Return the next byte."""
        if self.position >= len(self.data):
            raise PickleTruncated("it is truncated")
        self.position += 1
        return self.data[self.position - 1]

    def line(self) -> bytes:
        """Return the bytes up to the next newline, and skip that."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleTruncated("it is truncated")
        begin, self.position = self.position, end + 1
        return self.data[begin:end]

    def unsigned(self, width: int) -> int:
        """Return a number of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def unsigned4(self) -> int:
        """Return a number of four bytes, the most frequent width."""
        (value,) = unsigned4(self.data, self.position)
        self.position += 4
        return value  # type: ignore[no-any-return]

    def pop_mark(self) -> list[object]:
        """Return the values pushed since the last mark, and drop the mark."""
        items = self.stack
        self.stack = self.marks.pop()
        self.spent -= SLOT_BYTES * len(items)
        return items


Operation = Callable[[Machine], None]
"""Carries out one opcode."""
