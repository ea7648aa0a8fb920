"""Records with a checksum are checked while they are folded: what a disk or a copy damaged is not averaged in."""

from __future__ import annotations

from typing import NoReturn

from zlib_ng import zlib_ng

from ema_cli.errors import InputRefused
from ema_cli.fold.decode import Bytes
from ema_cli.storage.checksums import Assembly, Record
from ema_cli.storage.extents import Extent
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_PIECE_BYTES = 1 << 22


class Integrity:
    """Sees everything that is read of records, and raises as soon as one is whole and wrong. Safe for threads."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._records: dict[tuple[int, int], tuple[ByteSource, Record]] = {}

    def see(self, extent: Extent, offset: int, raw: Bytes) -> None:
        """Take note of bytes that were read at ``offset`` of the extent's source.

        Raises:
            InputRefused: the record that they belong to is damaged.

        """
        if extent.record is not None:
            self.see_crc(extent, offset, len(raw), zlib_ng.crc32(raw))

    def see_crc(self, extent: Extent, offset: int, length: int, crc: int) -> None:
        """Take note of bytes whose CRC-32 is known.

        Raises:
            InputRefused: the record that they belong to is damaged.

        """
        record = extent.record
        if record is None:
            return
        file = id(extent.source)
        self._records[file, record.offset] = extent.source, record
        found = self._assembly.add(file, record, offset, length, crc)
        if found is not None and found != record.crc32:
            _refuse(extent.source, record, found)

    def finish(self) -> None:
        """Check the records of which not every byte was folded exactly once, such as views of a larger storage.

        Raises:
            InputRefused: one of them is damaged.
            InputChanged: it cannot be read any more.

        """
        for key in sorted(self._assembly.unfinished()):
            source, record = self._records[key]
            found = source.crc32(record.offset, record.offset + record.size)
            if found is None:
                found = _crc32_of(source, record)
            if found != record.crc32:
                _refuse(source, record, found)


def _crc32_of(source: ByteSource, record: Record) -> int:
    found = 0
    for begin in range(0, record.size, _PIECE_BYTES):
        piece = source.read(record.offset + begin, min(_PIECE_BYTES, record.size - begin))
        found = zlib_ng.crc32(piece, found)
    return found


def _refuse(source: ByteSource, record: Record, found: int) -> NoReturn:
    raise InputRefused(
        f"{quoted(source.name)} is damaged between the bytes {record.offset:,} and {record.offset + record.size:,}: "
        f"their checksum is {found:08x}, {record.crc32:08x} was stored",
        hint="leave it out, or fetch it again",
    )
