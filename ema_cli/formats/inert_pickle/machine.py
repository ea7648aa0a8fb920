"""What the machine that reads a pickle works on: the bytes and the place in them, its stack, and what it has spent."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ema_cli.formats.inert_pickle.costs import SLOT_BYTES
from ema_cli.formats.inert_pickle.values import Global, PersistentLoad, PickleError, PickleTruncated, Reduce

unsigned4 = struct.Struct("<L").unpack_from
"""Returns the number of four bytes at a position, in a tuple."""


class State:
    """The bytes, the stack and the memo of one pickle, and the memory that they were counted for.

    Args:
        data: the bytes.
        start: where the pickle begins.
        reduce: answers the calls in it.
        persistent_load: answers its persistent ids.
        most_bytes: memory that it may take.

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
        """What was pushed since the last mark."""
        self.marks: list[list[object]] = []
        """What was pushed before it, and before the marks below it."""
        self.memo: list[object] = []
        self.sparse_memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        """Each name once."""
        self.tuple_end = -1
        """The position behind the last opcode that made a tuple of what follows a mark."""

    def charge(self, size: int) -> None:
        """Count memory, before it is allocated where that may be much.

        Raises:
            PickleError: it is more than may be taken.

        """
        self.spent += size
        if self.spent > self.most_bytes:
            raise PickleError(f"its values would take more than {self.most_bytes:,} bytes of memory")

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        begin = self.position
        end = begin + length
        if end > len(self.data):
            raise PickleTruncated("it ends in the middle")
        self.position = end
        return self.data[begin:end]

    def byte(self) -> int:
        """Return the next byte."""
        if self.position >= len(self.data):
            raise PickleTruncated("it ends in the middle")
        self.position += 1
        return self.data[self.position - 1]

    def line(self) -> bytes:
        """Return the bytes up to the end of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleTruncated("it ends in the middle")
        begin, self.position = self.position, end + 1
        return self.data[begin:end]

    def unsigned(self, width: int) -> int:
        """Return a number of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def unsigned4(self) -> int:
        """Return a number of four bytes, the most frequent kind."""
        (value,) = unsigned4(self.data, self.position)
        self.position += 4
        return value  # type: ignore[no-any-return]

    def pop_mark(self) -> list[object]:
        """Take what was pushed since the last mark; its places on the stack are free again."""
        items = self.stack
        self.stack = self.marks.pop()
        self.spent -= SLOT_BYTES * len(items)
        return items


Operation = Callable[[State], None]
"""What one opcode does."""
