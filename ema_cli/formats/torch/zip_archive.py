"""The zip archive that ``torch.save`` writes: its directory, and the offsets of its records.

The offset of a record's data is read from its local header: in archives that were unpacked and zipped again, records
are not aligned, so an offset cannot be computed. In a store, where each header is a request, it is computed if the
record fills the room up to the next one exactly as ``torch.save`` writes it, and has a checksum, which the fold
verifies. References: APPNOTE 4.3.7 of the zip format; ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable

from ema_cli.errors import InputRefused
from ema_cli.formats.foreign_archives import foreign_zip
from ema_cli.formats.torch.first_bytes import LOCAL_SIGNATURE
from ema_cli.formats.torch.zip_directory import FETCH_AGAIN, LOCAL_HEADER, ZipDirectory, ZipEntry
from ema_cli.storage.checksums import Record, RecordTable
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_ENCRYPTED = 0x1
_DESCRIBED = 0x8
"""A data descriptor follows the data."""
_DESCRIPTORS = (16, 24)
"""Bytes of a data descriptor with 32 or 64 bits per size."""
_ALIGNMENT = 64
_PADDING = range(4, 4 + 28 + _ALIGNMENT)
"""Bytes between the name of a record and its data: the header of the padding, perhaps long sizes, the padding."""
_WINDOW_BYTES = 1 << 15
"""Headers that are so close are read together."""
_LARGE_BYTES = 1 << 20
"""Mean size of the records of a file whose local headers are announced."""
RESAVE = "torch.save(torch.load(path, weights_only=True), path)"


class Archive:
    """The directory of a zip file, and the location of its records."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._entries = ZipDirectory(source)
        self._root = self._find_root()
        self._headers = _HeaderReader(source)
        self._storages: list[Record] = []

    def __contains__(self, name: str) -> bool:
        return self._root + name in self._entries.names

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._entries.names if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise foreign_zip(self._entries.names)
        return roots[0]

    def read(self, name: str, *, most: int) -> bytes:
        """Return the bytes of the record ``name``, checked against their checksum.

        Raises:
            InputRefused: it is missing, damaged, compressed, or larger than ``most`` bytes.

        """
        offset, size = self.record(name)
        if size > most:
            raise InputRefused(f"has a record {quoted(name)} of {size:,} bytes, more than the limit of {most:,}")
        data = self._source.read(offset, size)
        if self._entries[self._root + name].crc32 not in (0, zlib.crc32(data)):  # torch writes 0 if checksums are off
            raise InputRefused(f"has a damaged record {quoted(name)}: its checksum is wrong", hint=FETCH_AGAIN)
        return data

    def announce(self, keys: Iterable[str]) -> None:
        """Announce the local headers of storages: each is a read of its own. In a file, only those of large storages.

        Small ones are read together, or are so many that the announcements would take more time than they save.
        """
        is_remote, names = self._source.is_remote, self._entries.names
        if not is_remote and self._source.size() < _LARGE_BYTES * len(names):
            return
        for name in (f"{self._root}data/{key}" for key in keys):
            if name in names and not (is_remote and self._aligned_offset(self._entries[name]) is not None):
                entry = self._entries[name]
                self._source.will_need(entry.header, LOCAL_HEADER.size + len(entry.name_bytes))

    def storage(self, key: str) -> tuple[int, int]:
        """Return the byte offset and the size of the storage ``key``."""
        found = self.storage_record(key)
        return found.offset, found.size

    def storage_record(self, key: str) -> Record:
        """Return the place of the storage ``key``, with its checksum: 0 if the archive has none."""
        entry = self._entry(f"data/{key}")
        aligned = self._aligned_offset(entry) if self._source.is_remote else None
        found = Record(self._data_offset(entry) if aligned is None else aligned, entry.size, entry.crc32)
        if entry.crc32 and entry.size:  # torch writes 0 if checksums are off
            self._storages.append(found)
        return found

    def storage_bytes(self, key: str) -> int | None:
        """Return the size of the storage ``key``, as the directory states it; ``None`` if there is no such record."""
        return self._entries.size_of(f"{self._root}data/{key}")

    def checksums(self) -> RecordTable:
        """Return the checksums of the storages that were located."""
        return RecordTable(self._storages)

    def record(self, name: str) -> tuple[int, int]:
        """Return the byte offset and the size of the record ``name``.

        Raises:
            InputRefused: it is missing, damaged or compressed.

        """
        entry = self._entry(name)
        return self._data_offset(entry), entry.size

    def _entry(self, name: str) -> ZipEntry:
        name = self._root + name
        if name not in self._entries.names:
            raise InputRefused(f"is incomplete: it has no record {quoted(name)}")
        entry = self._entries[name]
        if entry.method != zipfile.ZIP_STORED or entry.flags & _ENCRYPTED:
            raise InputRefused(
                f"is a compressed archive (record {quoted(name)}), in which tensors cannot be located",
                hint=f"save it again, uncompressed: {RESAVE}",
            )
        if entry.packed_size != entry.size:
            raise InputRefused(f"contradicts itself about the size of record {quoted(name)}")
        return entry

    def _aligned_offset(self, entry: ZipEntry) -> int | None:
        """Return the offset of a storage where ``torch.save`` puts it; ``None`` if its header has to be read."""
        after_name = entry.header + LOCAL_HEADER.size + len(entry.name_bytes)
        for descriptor in _DESCRIPTORS if entry.flags & _DESCRIBED else (0,):
            offset = self._entries.end_of(entry) - descriptor - entry.size
            if entry.crc32 and offset % _ALIGNMENT == 0 and offset - after_name in _PADDING:
                return offset
        return None

    def _data_offset(self, entry: ZipEntry) -> int:
        """Return the offset of a record's data: after its local header, which must agree with the directory."""
        size = LOCAL_HEADER.size + len(entry.name_bytes)
        if entry.header <= self._source.size() - size:
            raw = self._headers.read(entry.header, size)
            signature, _, _, method, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(raw)
            start = entry.header + size + extra_bytes
            same = (signature, method, name_bytes) == (LOCAL_SIGNATURE, entry.method, len(entry.name_bytes))
            if same and raw[LOCAL_HEADER.size :] == entry.name_bytes and start + entry.size <= self._source.size():
                return int(start)
        raise InputRefused(f"has a damaged record {quoted(entry.name)}")


class _HeaderReader:
    """Reads local headers: those of small records that are close together with one read."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._begin = 0
        self._window = b""
        self._last = -_WINDOW_BYTES

    def read(self, offset: int, size: int) -> bytes:
        at = offset - self._begin
        if not 0 <= at <= len(self._window) - size:
            is_near = 0 <= offset - self._last < _WINDOW_BYTES and not self._source.is_remote
            length = min(_WINDOW_BYTES, self._source.size() - offset) if is_near else size
            self._begin, self._window, at = offset, self._source.read(offset, max(length, size)), 0
        self._last = offset
        return self._window[at : at + size]
