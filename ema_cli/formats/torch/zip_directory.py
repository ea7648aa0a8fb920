"""The directory at the end of a zip archive, in columns: a checkpoint with its optimizer has half a million records.

Only the fields that locate the data are kept, about 150 bytes per record; an object of ``zipfile`` takes a thousand.
Reference: APPNOTE 4.3.12 to 4.3.16 of the zip format, and 4.5.3 for sizes of more than 32 bits.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from ema_cli.errors import InputRefused
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

FETCH_AGAIN = "copy it again, or name only the other checkpoints"
MOST_RECORDS = 600_000
"""100,000 tensors with the state of Adam are 400,000 records."""
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
UTF8_NAME = 0x800
_LARGEST_DIRECTORY = 1 << 26
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_LONGEST_COMMENT = 65_535
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_SIGNATURE = b"PK\x06\x06"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_SIGNATURE = b"PK\x06\x07"
_ENTRY = struct.Struct("<4s6H3L5H2L")
_ENTRY_SIGNATURE = b"PK\x01\x02"
_CRC32_IN_ENTRY = 16
_EXTRA = struct.Struct("<2H")
_LONG_SIZES = 1
"""The extra field with sizes of more than 32 bits."""
_FULL = 0xFFFFFFFF
"""A size that is in the extra field."""


class ZipEntry(NamedTuple):
    """The directory's entry of one record."""

    name: str
    name_bytes: bytes
    """As stored in the archive, here and before the data."""
    flags: int
    method: int
    crc32: int
    packed_size: int
    size: int
    header: int
    """Byte of the archive where the local header begins."""


class DirectoryField(NamedTuple):
    """Where the directory has the CRC-32 of a record."""

    name: str
    header: int
    """Byte of the archive where the local header begins."""
    size: int
    crc32: int
    crc32_at: int
    """Byte of the archive where the directory has it, as four bytes, lowest first."""


class ZipDirectory:
    """All entries of an archive, by name.

    Raises:
        InputRefused: it is damaged or too large, or two records have the same name or share bytes.

    """

    def __init__(self, source: ByteSource) -> None:
        self.names: dict[str, int] = {}
        """The number of the entry of each name, in the order of the directory."""
        self._small = array("L")
        """For each entry: flags, method, CRC-32."""
        self._large = array("Q")
        """For each entry: packed size, size, offset of the local header."""
        self._begin, size, count = _find(source)
        self._read(source.read(self._begin, size), count)
        self._refuse_overlaps(self._begin)

    def __getitem__(self, name: str) -> ZipEntry:
        number = self.names[name]
        flags, method, crc32 = self._small[3 * number : 3 * number + 3]
        name_bytes = name.encode("utf-8" if flags & UTF8_NAME else "cp437")
        return ZipEntry(name, name_bytes, flags, method, crc32, *self._large[3 * number : 3 * number + 3])

    def end_of(self, entry: ZipEntry) -> int:
        """Return where the next record begins, or the directory."""
        return self._starts[bisect_right(self._starts, entry.header)]

    @cached_property
    def _starts(self) -> array[int]:
        """Where the records begin, in order, and the directory."""
        return array("Q", [*sorted(self._large[2::3]), self._begin])

    def size_of(self, name: str) -> int | None:
        """Return the size of a record; ``None`` if there is no such record."""
        number = self.names.get(name)
        return None if number is None else self._large[3 * number + 1]

    def _read(self, raw: bytes, count: int) -> None:
        position = 0
        names, small, large, entry, entry_bytes = self.names, self._small, self._large, _ENTRY.unpack_from, _ENTRY.size
        for number in range(count):
            if position + entry_bytes > len(raw):
                raise _damaged()
            signature, _, _, flags, method, _, _, crc32, packed, size, *lengths, disk, _, _, header = entry(
                raw, position
            )
            position += entry_bytes
            begin_extra = position + lengths[0]
            end = begin_extra + lengths[1] + lengths[2]
            if signature != _ENTRY_SIGNATURE or disk or end > len(raw):
                raise _damaged()
            if _FULL in (packed, size, header):
                size, packed, header = _long_sizes(raw[begin_extra : begin_extra + lengths[1]], size, packed, header)
            name = _decoded(raw[position:begin_extra], flags)
            if names.setdefault(name, number) != number:
                raise InputRefused(f"holds two records with the name {quoted(name)}")
            small.extend((flags, method, crc32))
            large.extend((packed, size, header))
            position = end
        if position != len(raw):
            raise _damaged()

    def _refuse_overlaps(self, directory: int) -> None:
        """Refuse records that share bytes with each other or with the directory: no program writes such archives."""
        position = 0
        headers, sizes = self._large[2::3], self._large[0::3]
        places = zip(headers, map(len, self.names), sizes, self.names, strict=True)
        for header, name_bytes, packed, name in sorted(places):
            if header < position:
                raise InputRefused(f"has a damaged record {quoted(name)}: it overlaps another")
            position = header + LOCAL_HEADER.size + name_bytes + packed
            if position > directory:
                raise InputRefused(f"has a damaged record {quoted(name)}: it reaches into the directory")


def directory_fields(source: ByteSource) -> Iterator[DirectoryField]:
    """Yield where the directory of an archive has the CRC-32s, in its order.

    Raises:
        InputRefused: it is damaged.

    """
    directory = ZipDirectory(source)
    begin, size, _ = _find(source)
    raw, position = source.read(begin, size), 0
    for name in directory.names:
        entry = directory[name]
        yield DirectoryField(name, entry.header, entry.size, entry.crc32, begin + position + _CRC32_IN_ENTRY)
        position += _ENTRY.size + sum(_ENTRY.unpack_from(raw, position)[10:13])


def _decoded(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8" if flags & UTF8_NAME else "cp437")
    except UnicodeDecodeError as error:
        raise _damaged() from error


def _find(source: ByteSource) -> tuple[int, int, int]:
    """Return the offset of the directory, its size, and the number of its entries."""
    begin, tail, at = _find_end(source)
    _, disk, first_disk, here, count, size, offset, _ = _END.unpack_from(tail, at)
    end = begin + at
    locator_at = end - _LOCATOR.size
    locator = source.read(locator_at, _LOCATOR.size) if locator_at >= 0 else b""
    if locator.startswith(_LOCATOR_SIGNATURE):
        end, disk, first_disk, here, count, size, offset = _find_long(source, locator, locator_at)
    if disk or first_disk or here != count:
        raise InputRefused("is one part of a multi-part zip archive")
    if offset + size != end:  # bytes before the archive, or between the directory and the end record
        raise _damaged()
    if count > MOST_RECORDS or size > _LARGEST_DIRECTORY:
        raise InputRefused(f"declares {count:,} records, more than the limit of {MOST_RECORDS:,}")
    return offset, size, count


def _find_end(source: ByteSource) -> tuple[int, bytes, int]:
    """Return where the end of a file begins, the end, and the offset of the end record in it. Most have no comment."""
    for comment in (0, _LONGEST_COMMENT):
        begin = max(0, source.size() - _END.size - comment)
        tail = source.read(begin, source.size() - begin)
        at = _end_record(tail)
        if at >= 0:
            return begin, tail, at
    raise _damaged()


def _end_record(tail: bytes) -> int:
    """Return the offset of the end record, -1 without one: the last with a comment that ends where the file ends."""
    at = len(tail)
    for _ in range(_LONGEST_COMMENT):
        at = tail.rfind(_END_SIGNATURE, 0, at + len(_END_SIGNATURE) - 1)
        if at < 0:
            break
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
    return -1


def _find_long(source: ByteSource, locator: bytes, locator_at: int) -> tuple[int, int, int, int, int, int, int]:
    """Read the end record of an archive of more than 4 GiB or 65,535 records."""
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1 or at + _END64.size != locator_at:
        raise _damaged()
    signature, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack(source.read(at, _END64.size))
    if signature != _END64_SIGNATURE:
        raise _damaged()
    return at, disk, first_disk, here, count, size, offset


def _long_sizes(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the sizes; those that did not fit come from the extra field, in this order."""
    position = 0
    while position + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if kind == _LONG_SIZES:
            values = extra[position : position + length]
            wanted = [size, packed, header].count(_FULL)
            if len(values) < 8 * wanted:
                break
            found = iter(struct.unpack_from(f"<{wanted}Q", values))
            size, packed, header = (next(found) if value == _FULL else value for value in (size, packed, header))
            return size, packed, header
        position += length
    raise _damaged()


def _damaged() -> InputRefused:
    return InputRefused(
        "is truncated or damaged: there is no valid zip directory at the end of the file", hint=FETCH_AGAIN
    )
