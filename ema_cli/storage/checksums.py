"""The CRC-32s that archives keep of their records, and how they are checked while the records are read in pieces."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from zlib_ng import zlib_ng


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run of bytes of a file, and what the file says of it."""

    offset: int
    size: int
    crc32: int


class RecordTable:
    """The records of one file, found by position. Holds 20 bytes for each."""

    __slots__ = ("_crcs", "_offsets", "_sizes")

    def __init__(self, records: Iterable[Record]) -> None:
        ordered = sorted(records, key=lambda record: record.offset)
        self._offsets = array("q", [record.offset for record in ordered])
        self._sizes = array("q", [record.size for record in ordered])
        self._crcs = array("L", [record.crc32 for record in ordered])

    def find(self, offset: int) -> Record | None:
        """Return the record that the byte at ``offset`` is in; ``None`` if it is in none."""
        number = bisect_right(self._offsets, offset) - 1
        if number < 0 or offset >= self._offsets[number] + self._sizes[number]:
            return None
        return Record(offset=self._offsets[number], size=self._sizes[number], crc32=self._crcs[number])


@dataclass(slots=True)
class _Seen:
    """The runs of a record that were read, joined where they touch. Runs that overlap are kept side by side."""

    ends: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By the begin of a run: its end and its CRC-32."""
    begins: dict[int, int] = field(default_factory=dict)
    """By the end of a run: its begin."""

    def add(self, begin: int, end: int, crc: int) -> None:
        left = self.begins.pop(begin, None)
        if left in self.ends:
            _, left_crc = self.ends.pop(left)
            crc = zlib_ng.crc32_combine(left_crc, crc, end - begin)
            begin = left
        right = self.ends.pop(end, None)
        if right is not None:
            right_end, right_crc = right
            self.begins.pop(right_end, None)
            crc = zlib_ng.crc32_combine(crc, right_crc, right_end - end)
            end = right_end
        self.ends[begin] = end, crc
        self.begins[end] = begin


class Assembly:
    """Puts the CRC-32s of the pieces of records together, in any order. Safe to call from several threads."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], _Seen] = {}
        self._whole: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def add(self, file: int, record: Record, begin: int, length: int, crc: int) -> int | None:
        """Add a piece; return the CRC-32 of the record when that makes it whole.

        Args:
            file: a number that tells the files apart.
            record: what the piece is of.
            begin: byte of the file where it begins.
            length: its bytes.
            crc: its CRC-32.

        """
        key = file, record.offset
        with self._lock:
            if key in self._whole or length == 0:
                return None
            seen = self._open.setdefault(key, _Seen())
            seen.add(begin, begin + length, crc)
            end, found = seen.ends.get(record.offset, (0, 0))
            if end != record.offset + record.size:
                return None
            del self._open[key]
            self._whole.add(key)
            return found

    def unfinished(self) -> set[tuple[int, int]]:
        """Return the records that were read in part, or in pieces that overlap: pairs of file and offset."""
        return set(self._open)
