"""The bytes around the data of a tensor in the zip archive that ``torch.save`` writes for it.

The archive is that of torch 2.13 to the byte, except that it has no record ``.data/serialization_id``: a hash of all
checksums, which torch only logs. No record is larger than 4 GB, so nothing needs the 64-bit fields of a record.
References: ``torch/serialization.py`` and ``torch/_utils.py``; ``caffe2/serialize/inline_container.cc``; APPNOTE of the
zip format.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod

from ema_cli.dtypes import DType
from ema_cli.formats.torch.pickle_writer import PickleWriter
from ema_cli.formats.torch.storages import storage_kind
from ema_cli.record import record

_ROOT = "archive/"
_ALIGNMENT = 64
_UTF8 = 0x800
_DESCRIBED = 0x8
"""A descriptor follows the data."""
_LOCAL = struct.Struct("<4s5H3L2H")
_PADDING = struct.Struct("<2sH")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_CRC32 = 4
"""Byte of the CRC-32 in a descriptor."""
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_CRC32 = 16
"""Byte of the CRC-32 in an entry of the directory."""
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_VERSIONS = (0x31E, 45)
"""Of the program that torch writes with, and of the format."""
_DATA_ENTRY = 4
"""Number of the record of the data."""
_UNTYPED = "UntypedStorage"


@record
class TensorArchive:
    """The archive of a tensor without its data, which are between ``head`` and ``tail``; no CRC-32 of them is set."""

    head: bytes
    data_bytes: int
    tail: bytes
    crc32_fields: tuple[int, ...]
    """Where the archive holds the CRC-32 of the data."""

    @property
    def nbytes(self) -> int:
        """Size of the archive."""
        return len(self.head) + self.data_bytes + len(self.tail)


@lru_cache(maxsize=4096)  # tensors of one type and shape share their bytes
def tensor_archive(dtype: DType, shape: tuple[int, ...]) -> TensorArchive:
    """Return the archive of a contiguous tensor of less than 4 GB."""
    made = _ZipWriter()
    made.add("data.pkl", tensor_pickle(dtype, shape))
    made.add(".format_version", b"1")
    made.add(".storage_alignment", str(_ALIGNMENT).encode())
    made.add("byteorder", b"little")
    data_bytes = prod(shape) * dtype.itemsize
    begin, fields = made.add_without_data("data/0", data_bytes)
    made.add("version", b"3\n")
    entry = made.finish()[_DATA_ENTRY]
    return TensorArchive(
        head=bytes(made.written[:begin]),
        data_bytes=data_bytes,
        tail=bytes(made.written[begin:]),
        crc32_fields=(*fields, entry + _CENTRAL_CRC32) if fields else (),
    )


def tensor_pickle(dtype: DType, shape: Sequence[int]) -> bytes:
    """Return the pickle of a contiguous tensor that is all of the storage ``0``."""
    kind = storage_kind(dtype.torch_name)
    typed = kind != _UNTYPED
    elements = prod(shape)
    made = PickleWriter()
    made.name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    made.add(pickle.MARK, pickle.MARK)
    made.text("storage")
    made.name("torch" if typed else "torch.storage", kind)
    made.text("0")
    made.text("cpu")
    made.number(elements if typed else elements * dtype.itemsize)
    made.add(pickle.TUPLE)
    made.keep()
    made.add(pickle.BINPERSID)
    made.number(0)
    made.numbers(shape)
    made.numbers(_strides(shape))
    made.add(pickle.NEWFALSE)
    made.name("collections", "OrderedDict")
    made.add(pickle.EMPTY_TUPLE, pickle.REDUCE)
    made.keep()
    if not typed:
        made.name("torch", dtype.torch_name)
    made.add(pickle.TUPLE)
    made.keep()
    made.add(pickle.REDUCE)
    made.keep()
    return made.finish()


def _strides(shape: Sequence[int]) -> list[int]:
    """Return the strides that torch gives a new tensor; a dimension without elements counts as 1."""
    return [prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape))]


@record
class _Entry:
    """An entry of the directory."""

    name: bytes
    flags: int
    crc32: int
    nbytes: int
    header: int
    """Where the record begins."""


class _ZipWriter:
    """A zip archive; the data of a record may be left out."""

    def __init__(self) -> None:
        self.written = bytearray()
        self._omitted = 0
        self._entries: list[_Entry] = []

    @property
    def _position(self) -> int:
        return len(self.written) + self._omitted

    def add(self, name: str, content: bytes) -> None:
        """Write a record."""
        entry = self._begin(name, len(content), zlib.crc32(content))
        self.written += content
        self._describe(entry)

    def add_without_data(self, name: str, nbytes: int) -> tuple[int, tuple[int, ...]]:
        """Write a record except its data; return where they belong among the bytes written, and the CRC-32 field."""
        entry = self._begin(name, nbytes, 0)
        begin = len(self.written)
        self._omitted += nbytes
        field = self._position + _DESCRIPTOR_CRC32
        return begin, (field,) if self._describe(entry) else ()

    def _begin(self, name: str, nbytes: int, crc32: int) -> _Entry:
        encoded = (_ROOT + name).encode()
        flags = _UTF8 | (_DESCRIBED if nbytes else 0)
        entry = _Entry(name=encoded, flags=flags, crc32=crc32, nbytes=nbytes, header=self._position)
        self._entries.append(entry)
        padding = -(self._position + _LOCAL.size + len(encoded) + _PADDING.size) % _ALIGNMENT
        self.written += _LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(encoded), _PADDING.size + padding)
        self.written += encoded + _PADDING.pack(b"FB", padding) + b"Z" * padding
        return entry

    def _describe(self, entry: _Entry) -> bool:
        """Write the descriptor of a record, unless it is empty; return whether it has one."""
        if entry.nbytes:
            self.written += _DESCRIPTOR.pack(b"PK\7\10", entry.crc32, entry.nbytes, entry.nbytes)
        return entry.nbytes > 0

    def finish(self) -> list[int]:
        """Write the directory; return the position of each entry."""
        begin, positions = self._position, []
        for entry in self._entries:
            positions.append(self._position)
            numbers = (entry.crc32, entry.nbytes, entry.nbytes, len(entry.name), 0, 0, 0, 0, 0, entry.header)
            self.written += _CENTRAL.pack(b"PK\1\2", 0, 0, entry.flags, 0, 0, 0, *numbers) + entry.name
        end, count = self._position, len(positions)
        nbytes = end - begin
        self.written += _END_64.pack(b"PK\6\6", _END_64.size - 12, *_VERSIONS, 0, 0, count, count, nbytes, begin)
        self.written += _LOCATOR.pack(b"PK\6\7", 0, end, 1)
        self.written += _END.pack(b"PK\5\6", 0, 0, count, count, nbytes, begin, 0)
        return positions
