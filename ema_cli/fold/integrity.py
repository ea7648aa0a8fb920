"""Verify the stored checksums of the inputs while they are read: bytes that a disk or a copy damaged are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ema_cli.errors import InputRefused
from ema_cli.fold.conversion import Bytes
from ema_cli.records.fold_results import RecordPart
from ema_cli.storage.checksums import Assembly, Record, RecordTable
from ema_cli.storage.extents import Extent
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

Numbers = NDArray[np.int64]
_PIECE_BYTES = 1 << 22


class IntegrityCheck:
    """Compares every record that is read with its stored CRC-32, as soon as it is complete. Safe for threads."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._records: dict[tuple[int, int], tuple[ByteSource, Record]] = {}

    def add(self, extent: Extent, offset: int, raw: Bytes) -> None:
        """Add bytes that were read at ``offset`` of the extent's source, as ``add_crc`` does."""
        if extent.record is not None:
            self.add_crc(extent, offset, len(raw), zlib_ng.crc32(raw))

    def add_crc(self, extent: Extent, offset: int, length: int, crc: int) -> None:
        """Add ``length`` bytes at ``offset`` of the extent's source, given their CRC-32.

        Raises:
            InputRefused: their record is damaged.

        """
        if extent.record is not None:
            self._add(extent.source, extent.record, offset, length, crc)

    def add_ranges(self, source: ByteSource, table: RecordTable, begins: Numbers, ends: Numbers, raw: Bytes) -> None:
        """Add ranges of a file, in order, which are in ``raw``: the bytes from the first begin to the last end.

        Raises:
            InputRefused: a record is damaged.

        """
        records = _records_at(table, begins)
        joined = (begins[1:] == ends[:-1]) & (records[1:] == records[:-1])
        lows = np.flatnonzero(np.concatenate(([True], ~joined)))
        numbers = records[lows].tolist()
        view, first = raw.data, int(begins[0])
        edges = zip(numbers, begins[lows].tolist(), ends[np.append(lows[1:], len(ends)) - 1].tolist(), strict=True)
        for number, begin, end in edges:
            if number < 0:
                continue
            crc = zlib_ng.crc32(view[begin - first : end - first])
            record = table[number]
            if begin == record.offset and end - begin == record.size:
                if crc != record.crc32:
                    _refuse(source, record, crc)
            else:
                self._add(source, record, begin, end - begin, crc)

    def _add(self, source: ByteSource, record: Record, begin: int, length: int, crc: int) -> None:
        file = id(source)
        self._records[file, record.offset] = source, record
        found = self._assembly.add(file, record, begin, length, crc)
        if found is not None and found != record.crc32:
            _refuse(source, record, found)

    def parts(self, files: Mapping[int, tuple[int, int]]) -> Iterator[RecordPart]:
        """Yield the bytes of unfinished records. ``files``: checkpoint and file of each source, by its ``id``."""
        for key, ranges in self._assembly.ranges().items():
            _, record = self._records[key]
            checkpoint, file = files[key[0]]
            for begin, end, crc in ranges:
                yield RecordPart(
                    checkpoint=checkpoint,
                    file=file,
                    offset=record.offset,
                    begin=begin,
                    length=end - begin,
                    crc32=crc,
                )

    def merge(self, source: ByteSource, table: RecordTable, part: RecordPart) -> None:
        """Add bytes that another process read of a file.

        Raises:
            InputRefused: their record is damaged.

        """
        record = table.find(part.offset)
        if record is not None:
            self._add(source, record, part.begin, part.length, part.crc32)

    def finish(self) -> None:
        """Check the remaining records: those not read exactly once, such as a storage that several views share.

        Of a record with gaps, such as the padding between the partitions of parameters, only the gaps are read.

        Raises:
            InputRefused: a record is damaged.
            InputChanged: a record cannot be read any more.

        """
        for key in sorted(self._assembly.unfinished()):
            source, record = self._records[key]
            found = source.crc32(record.offset, record.offset + record.size)
            if found is None and self._fill(key[0], source, record):
                continue
            if found is None:
                found = _crc32_of(source, record.offset, record.offset + record.size)
            if found != record.crc32:
                _refuse(source, record, found)

    def _fill(self, file: int, source: ByteSource, record: Record) -> bool:
        """Read what was not read of a record, unless some of it was read twice; return whether that is all."""
        gaps = self._assembly.gaps(file, record)
        if gaps is None:
            return False
        for begin, end in gaps:
            self._add(source, record, begin, end - begin, _crc32_of(source, begin, end))
        return (file, record.offset) not in self._assembly.unfinished()


def _records_at(table: RecordTable, offsets: Numbers) -> Numbers:
    """Return the number of the record that includes the byte at each of the ``offsets``; -1 where there is none."""
    begins, sizes = (np.frombuffer(column, dtype=np.int64) for column in table.places)
    if not len(begins):
        return np.full(len(offsets), -1)
    numbers = np.searchsorted(begins, offsets, side="right") - 1
    return np.where((numbers >= 0) & (offsets < (begins + sizes)[numbers]), numbers, -1)


def _crc32_of(source: ByteSource, begin: int, end: int) -> int:
    found = 0
    for start in range(begin, end, _PIECE_BYTES):
        found = zlib_ng.crc32(source.read(start, min(_PIECE_BYTES, end - start)), found)
    return found


def _refuse(source: ByteSource, record: Record, found: int) -> NoReturn:
    raise InputRefused(
        f"{quoted(source.name)} is damaged: bytes {record.offset:,} to {record.offset + record.size:,} have the "
        f"checksum {found:08x}, but {record.crc32:08x} is stored",
        hint="fetch the file again, or average without it",
    )
