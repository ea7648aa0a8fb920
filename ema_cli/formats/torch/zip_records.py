"""The records of a zip archive of torch by position, and where the archive has their CRC-32s.

They have to change when the data of a record change. The CRC-32 of a record is in the directory at the end, and in its
local header or in a data descriptor after its data. torch writes 0 everywhere if checksums are switched off.
References: APPNOTE 4.3.7, 4.3.9 and 4.3.12 of the zip format.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from ema_cli.errors import InputRefused
from ema_cli.formats.torch.zip_directory import LOCAL_HEADER, DirectoryField, directory_fields
from ema_cli.records.files import Checksum
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_IN_LOCAL_HEADER = 14
"""Byte of a local header where its CRC-32 is."""
_DESCRIBED = 0x8
"""A data descriptor follows the data."""
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
_PICKLE = "/data.pkl"


class StoredRecord(NamedTuple):
    """A record of an archive."""

    key: str
    """Its name without the folder of the storages: the key of a storage."""
    begin: int
    """Byte of the archive where its data begin."""
    checksum: Checksum | None
    """``None`` if the archive was written without checksums."""


class ZipRecords:
    """The records of an archive, found by position.

    Args:
        source: the archive, which was read as a checkpoint before.

    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._fields = sorted(directory_fields(source), key=lambda one: one.header)
        self._headers = [one.header for one in self._fields]
        self._root = next(one.name for one in self._fields if one.name.endswith(_PICKLE)).removesuffix("data.pkl")
        self._found: dict[int, StoredRecord] = {}
        """By the byte of the local header."""
        self._are_off = any(one.name.endswith(_PICKLE) and not one.crc32 for one in self._fields)

    def announce(self, offsets: Iterable[int]) -> None:
        """Announce to a remote source what ``at`` will read for these bytes: each would be a request of its own."""
        if not self._source.is_remote:
            return
        for entry in dict.fromkeys(map(self._entry, offsets)):
            self._source.will_need(entry.header, LOCAL_HEADER.size)

    def at(self, offset: int) -> StoredRecord:
        """Return the record with the byte at ``offset``.

        Raises:
            InputRefused: the record contradicts the directory.

        """
        entry = self._entry(offset)
        if entry.header not in self._found:
            self._found[entry.header] = self._record(entry)
        return self._found[entry.header]

    def _entry(self, offset: int) -> DirectoryField:
        return self._fields[bisect_right(self._headers, offset) - 1]

    def _record(self, entry: DirectoryField) -> StoredRecord:
        raw = self._source.read(entry.header, LOCAL_HEADER.size)
        flags, crc32, *lengths = (LOCAL_HEADER.unpack(raw)[at] for at in (2, 6, 9, 10))
        begin = entry.header + LOCAL_HEADER.size + sum(lengths)
        checksum = None if self._are_off else self._checksum(entry, begin, flags, crc32)
        return StoredRecord(entry.name.removeprefix(f"{self._root}data/"), begin, checksum)

    def _checksum(self, entry: DirectoryField, begin: int, flags: int, crc32: int) -> Checksum:
        """Return the checksum of a record; its local header has these flags and this CRC-32."""
        fields = [entry.crc32_at]
        if crc32 == entry.crc32 and crc32:
            fields.append(entry.header + _IN_LOCAL_HEADER)
        if flags & _DESCRIBED:
            fields.append(self._in_descriptor(begin + entry.size, entry))
        elif crc32 != entry.crc32:
            raise _contradicts(entry.name)
        return Checksum(begin=begin, nbytes=entry.size, fields=tuple(sorted(fields)))

    def _in_descriptor(self, end: int, entry: DirectoryField) -> int:
        """Return where the CRC-32 is in the data descriptor at byte ``end``, which may begin with a signature."""
        expected = entry.crc32.to_bytes(4, "little")
        raw = self._source.read(end, min(8, self._source.size() - end))
        if raw == _DESCRIPTOR_SIGNATURE + expected:
            return end + len(_DESCRIPTOR_SIGNATURE)
        if raw.startswith(expected):
            return end
        raise _contradicts(entry.name)


def _contradicts(name: str) -> InputRefused:
    return InputRefused(f"contradicts itself about the checksum of record {quoted(name)}")
