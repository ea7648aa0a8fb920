"""The CRC-32s that archives store of their records, and their check while the records are read in pieces."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from zlib_ng import zlib_ng


class Record(NamedTuple):
    """A range of a file with the checksum that the file states."""

    offset: int
    size: int
    crc32: int


class RecordTable:
    """The records of one file, found by position. Takes 20 bytes per record."""

    __slots__ = ("_crcs", "_offsets", "_sizes")

    def __init__(self, records: Iterable[Record]) -> None:
        ordered = sorted(records)
        offsets, sizes, crcs = zip(*ordered, strict=True) if ordered else ((), (), ())
        self._offsets, self._sizes, self._crcs = array("q", offsets), array("q", sizes), array("L", crcs)

    def __getitem__(self, number: int) -> Record:
        return Record(self._offsets[number], self._sizes[number], self._crcs[number])

    def find(self, offset: int) -> Record | None:
        """Return the record that includes the byte at ``offset``; ``None`` if there is none."""
        number = bisect_right(self._offsets, offset) - 1
        return None if number < 0 or offset >= self._offsets[number] + self._sizes[number] else self[number]

    @property
    def places(self) -> tuple[array[int], array[int]]:
        """Offsets and sizes of the records, in order: 8 bytes each."""
        return self._offsets, self._sizes


@dataclass(slots=True, eq=False, repr=False)
class _ReadRanges:
    """The ranges of a record that were read, joined if they touch.

    No two begin at one byte, nor end at one: of two views of a storage, the range that was added first stays.
    """

    ends: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By the beginning of a range: its end and its CRC-32."""
    begins: dict[int, int] = field(default_factory=dict)
    """By the end of a range: its beginning."""

    def add(self, begin: int, end: int, crc: int) -> None:
        if begin in self.ends or end in self.begins:
            return
        left = self.begins.pop(begin, None)
        if left is not None:
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

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]] | None:
        """Return the ranges between ``begin`` and ``end`` that were not read; ``None`` if some were read twice."""
        missing = []
        for first, (stop, _) in sorted(self.ends.items()):
            if first < begin:
                return None
            if first > begin:
                missing.append((begin, first))
            begin = stop
        return [*missing, (begin, end)] if begin < end else missing


class Assembly:
    """Combines the CRC-32s of the pieces of records, in any order. Thread-safe."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], _ReadRanges] = {}
        self._whole: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def add(self, file: int, record: Record, begin: int, length: int, crc: int) -> int | None:
        """Add ``length`` bytes at byte ``begin`` of a file; return the CRC-32 of their record if they complete it."""
        key = file, record.offset
        with self._lock:
            if key in self._whole or length == 0:
                return None
            ranges = self._open.setdefault(key, _ReadRanges())
            ranges.add(begin, begin + length, crc)
            end, found = ranges.ends.get(record.offset, (0, 0))
            if end != record.offset + record.size:
                return None
            del self._open[key]
            self._whole.add(key)
            return found

    def ranges(self) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        """Return what was read of the unfinished records: begin, end and CRC-32 of each range, by file and offset."""
        return {
            key: [(begin, end, crc) for begin, (end, crc) in found.ends.items()] for key, found in self._open.items()
        }

    def gaps(self, file: int, record: Record) -> list[tuple[int, int]] | None:
        """Return the ranges of a record that were not read; ``None`` if some were read twice."""
        return self._open[file, record.offset].gaps(record.offset, record.offset + record.size)

    def unfinished(self) -> set[tuple[int, int]]:
        """Return the records that were read partly, or in overlapping pieces: pairs of file and offset."""
        return set(self._open)
