"""Zip archives byte by byte, with any field of any header changed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from tests.hostile.opcodes import mapping, stop, tensor

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_FULL = 0xFFFFFFFF
GOOD = stop(mapping(w=tensor()))
"""The pickle of one tensor of four elements in storage 0."""
FOUR = bytes(16)
"""The bytes of that storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record, and the fields of its headers; ``None`` is the true value."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc32: int | None = None
    size: int | None = None
    packed: int | None = None
    header: int | None = None
    disk: int = 0
    extra: bytes = b""
    local_name: str | None = None
    local_method: int | None = None
    local_extra: bytes = b""
    raw_name: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The fields of the end record; ``None`` is the true value."""

    comment: bytes = b""
    count: int | None = None
    count_here: int | None = None
    size: int | None = None
    begin: int | None = None
    disk: int = 0
    first_disk: int = 0
    comment_size: int | None = None
    between: bytes = b""
    """Bytes before the end record."""
    tail: bytes = b""


def pack(*records: Record, ending: Ending | None = None, prefix: bytes = b"") -> bytes:
    """Return an archive of the records."""
    body, directory = bytearray(prefix), bytearray()
    for record in records:
        header = len(body) if record.header is None else record.header
        body += _local(record)
        directory += _entry(record, header)
    return bytes(body + directory) + _end(ending or Ending(), len(records), len(directory), len(body))


def checkpoint(
    *more: Record,
    pickle: bytes = GOOD,
    data: bytes = FOUR,
    root: str = "archive",
    ending: Ending | None = None,
    prefix: bytes = b"",
) -> bytes:
    """Return an archive as ``torch.save`` lays it out, with records added."""
    records = (Record(name=f"{root}/data.pkl", data=pickle), Record(name=f"{root}/data/0", data=data), *more)
    return pack(*records, ending=ending, prefix=prefix)


def _local(record: Record) -> bytes:
    name = (record.name if record.local_name is None else record.local_name).encode()
    if record.raw_name is not None:
        name = record.raw_name
    method = record.method if record.local_method is None else record.local_method
    crc32, size, packed = _numbers(record)
    sizes = (crc32, min(packed, _FULL), min(size, _FULL), len(name), len(record.local_extra))
    return _LOCAL.pack(b"PK\x03\x04", 20, record.flags, method, 0, 0, *sizes) + name + record.local_extra + record.data


def _entry(record: Record, header: int) -> bytes:
    name = record.name.encode() if record.raw_name is None else record.raw_name
    crc32, size, packed = _numbers(record)
    sizes = (crc32, packed, size, len(name), len(record.extra), 0, record.disk, 0, 0, header)
    return _ENTRY.pack(b"PK\x01\x02", 20, 20, record.flags, record.method, 0, 0, *sizes) + name + record.extra


def _numbers(record: Record) -> tuple[int, int, int]:
    crc32 = zlib.crc32(record.data) if record.crc32 is None else record.crc32
    size = len(record.data) if record.size is None else record.size
    return crc32, size, len(record.data) if record.packed is None else record.packed


def _end(ending: Ending, count: int, size: int, begin: int) -> bytes:
    count = count if ending.count is None else ending.count
    here = count if ending.count_here is None else ending.count_here
    size = size if ending.size is None else ending.size
    begin = begin if ending.begin is None else ending.begin
    comment = len(ending.comment) if ending.comment_size is None else ending.comment_size
    record = _END.pack(b"PK\x05\x06", ending.disk, ending.first_disk, here, count, size, begin, comment)
    return ending.between + record + ending.comment + ending.tail
