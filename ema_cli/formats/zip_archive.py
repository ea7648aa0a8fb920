"""The zip archive that ``torch.save`` writes: its directory, and where the bytes of its records begin.

A record's data offset is read from its local header: archives that were unpacked and zipped again are not aligned,
so computed offsets are wrong there. Reference: APPNOTE 4.3.7 of the zip format.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from ema_cli.errors import InputRefused
from ema_cli.storage.checksums import Record, RecordTable
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_LARGEST_DIRECTORY = 1 << 30
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800
FETCH_AGAIN = "was it saved or copied to the end? leave it out, or fetch it again"
RESAVE = "torch.save(torch.load(path, weights_only=True), path)"


def looks_like_zip(head: bytes) -> bool:
    """Whether a file begins as a zip archive."""
    return head.startswith(_LOCAL_SIGNATURE)


class Archive:
    """The directory of a zip file, and where its records' bytes lie."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        try:
            with zipfile.ZipFile(_SourceFile(source)) as archive:
                entries = archive.infolist()
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            ValueError,
            struct.error,
            OSError,
        ) as error:
            raise InputRefused(
                "is incomplete or damaged: the directory at the end of the zip archive cannot be read",
                hint=FETCH_AGAIN,
            ) from error
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise InputRefused("holds two records of one name")
        _refuse_overlaps(entries)
        self._root = self._find_root()
        self._storages: list[Record] = []

    def __contains__(self, name: str) -> bool:
        return self._root + name in self._entries

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise InputRefused("is a zip archive, but not one that torch.save wrote")
        return roots[0]

    def read(self, name: str, *, most: int) -> bytes:
        """Return the bytes of the record called ``name``, checked against its checksum.

        Raises:
            InputRefused: it is missing, damaged, compressed, or larger than ``most`` bytes.

        """
        offset, size = self.record(name)
        if size > most:
            raise InputRefused(f"has a record {quoted(name)} of {size:,} bytes; more than {most:,} are refused")
        data = self._source.read(offset, size)
        if self._entries[self._root + name].CRC not in (0, zlib.crc32(data)):  # torch writes 0 when told to have none
            raise InputRefused(f"has a damaged record {quoted(name)}: its checksum is wrong", hint=FETCH_AGAIN)
        return data

    def storage(self, key: str) -> tuple[int, int]:
        """Return the byte offset and the size of the storage called ``key``."""
        name = f"data/{key}"
        offset, size = self.record(name)
        crc32 = self._entries[self._root + name].CRC
        if crc32 and size:  # torch writes 0 when told to have none
            self._storages.append(Record(offset=offset, size=size, crc32=crc32))
        return offset, size

    def checksums(self) -> RecordTable:
        """Return the checksums of the storages that were asked for."""
        return RecordTable(self._storages)

    def record(self, name: str) -> tuple[int, int]:
        """Return the byte offset and the size of the record called ``name``.

        Raises:
            InputRefused: it is missing, damaged or compressed.

        """
        name = self._root + name
        entry = self._entries.get(name)
        if entry is None:
            raise InputRefused(f"has no record {quoted(name)}: it is incomplete")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise InputRefused(
                f"is a compressed archive (record {quoted(name)}), so its tensors cannot be read piece by piece",
                hint=f"save it again, uncompressed: {RESAVE}",
            )
        if entry.compress_size != entry.file_size:
            raise InputRefused(f"contradicts itself about the size of record {quoted(name)}")
        return self._data_offset(entry), entry.file_size

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        """Read the local header, which must say what the directory says; the data follows it."""
        name = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8_NAME else "cp437")
        size = _LOCAL_HEADER.size + len(name)
        if 0 <= entry.header_offset <= self._source.size() - size:
            raw = self._source.read(entry.header_offset, size)
            signature, _, _, method, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(raw)
            start = entry.header_offset + size + extra_bytes
            same = (signature, method, name_bytes) == (_LOCAL_SIGNATURE, entry.compress_type, len(name))
            if same and raw[_LOCAL_HEADER.size :] == name and start + entry.file_size <= self._source.size():
                return int(start)
        raise InputRefused(f"has a damaged record {quoted(entry.filename)}")


def _refuse_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Two records in the same bytes are no archive that anything writes."""
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < position:
            raise InputRefused(f"has a damaged record {quoted(entry.filename)}: it overlaps another")
        position = entry.header_offset + _LOCAL_HEADER.size + len(entry.orig_filename) + entry.compress_size


class _SourceFile(io.RawIOBase):
    """A byte source as the file object that ``zipfile`` wants, for the directory at the end of the archive."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size()}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size() - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if count > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("a directory of unreasonable size")
        self._position += count
        return self._source.read(self._position - count, count)
