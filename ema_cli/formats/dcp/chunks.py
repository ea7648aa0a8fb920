"""Where the elements of a saved chunk begin. Each chunk is a complete ``torch.save`` archive in a ``.distcp`` file.

Archives of tensors of one type and shape begin with the same bytes, up to the data. So one of them is parsed
(directory, pickle, records); of the others, these first bytes are compared, and the checksum after the data is read.
A checkpoint of thousands of chunks then costs one or two small reads per chunk.
"""

from __future__ import annotations

import struct

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.data_files import Window
from ema_cli.formats.dcp.saved_items import Chunk, SavedTensor
from ema_cli.formats.structure import UnreadableTensor
from ema_cli.formats.torch.first_bytes import looks_like_zip
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.formats.torch.tensor_locations import locate_tensor
from ema_cli.formats.torch.zip_archive import Archive
from ema_cli.formats.torch.zip_format import parse_pickle, refuse_other_kinds
from ema_cli.record import record
from ema_cli.storage.checksums import Record
from ema_cli.storage.source import ByteSource

_LARGEST_PICKLE = 1 << 20
_LARGEST_HEAD = 1 << 12
"""Bytes before the data: longer heads are not kept for comparison."""
_ONE_READ = 1 << 14
"""Bytes; of a larger chunk only the two ends are read."""
_DESCRIPTOR = struct.Struct("<4sL")
"""After the data of a record: a signature and the CRC-32. Reference: APPNOTE 4.3.9 of the zip format."""
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


@record
class LocatedChunk:
    """The position of a chunk's elements."""

    strides: tuple[int, ...] | None
    offset: int
    """Byte of the file where the first element begins."""
    record: Record | None
    """The bytes with a checksum in the archive."""


@record
class _Form:
    """The common part of archives of one size, type and shape; offsets count from the beginning of the archive."""

    strides: tuple[int, ...] | None
    offset: int
    """Of the first element."""
    data: int
    """Offset of the data's record."""
    data_bytes: int
    head: bytes
    """All bytes before that."""


class ChunkReader:
    """Locates chunks, and remembers the forms of those that were parsed."""

    def __init__(self) -> None:
        self._forms: dict[object, _Form] = {}

    def announce(self, source: ByteSource, tensor: SavedTensor, chunk: Chunk) -> None:
        """Announce to ``source`` what ``locate`` will read, if the form of the chunk is known."""
        form = self._forms.get(kind(tensor, chunk))
        if form is not None:
            for begin, length in _read_of_same(form):
                source.will_need(chunk.stored.offset + begin, length)

    def locate(self, source: ByteSource, tensor: SavedTensor, chunk: Chunk) -> LocatedChunk:
        """Return the position of the elements of ``chunk`` in ``source``.

        Raises:
            UnreadableTensor: they are not plain numbers of a supported type.
            InputRefused: the archive is truncated, damaged, or contradicts the metadata.

        """
        window = Window(source, chunk.stored.offset, chunk.stored.length)
        form = self._forms.get(kind(tensor, chunk))
        if form is not None:
            crc32 = _crc32_of_same(window, form)
            if crc32 is not None:
                return _located(form, crc32, chunk.stored.offset)
        form, crc32 = _parse(window, tensor, chunk)
        if form.head:
            self._forms[kind(tensor, chunk)] = form
        return _located(form, crc32, chunk.stored.offset)


def kind(tensor: SavedTensor, chunk: Chunk) -> object:
    """Return a key that is equal for chunks that may have the same form."""
    return chunk.stored.length, tensor.dtype_name, chunk.shape


def open_archive(window: Window) -> tuple[Archive, object]:
    """Return the archive in ``window``, and the inert value of its pickle.

    Raises:
        InputRefused: it was not written by ``torch.save``.

    """
    if not looks_like_zip(window.read(0, min(4, window.size()))):
        raise InputRefused(
            "is not a torch.save archive, the default serialization format of torch.distributed.checkpoint",
            hint="save it with serialization_format=SerializationFormat.TORCH_SAVE",
        )
    archive = Archive(window)
    refuse_other_kinds(archive)
    value, declared = parse_pickle(archive.read("data.pkl", most=_LARGEST_PICKLE))
    declared.compare(archive.storage_bytes)
    return archive, value


def _parse(window: Window, tensor: SavedTensor, chunk: Chunk) -> tuple[_Form, int]:
    """Return the form of a chunk and its CRC-32, 0 if there is none. A form without a head cannot be shared."""
    archive, value = open_archive(window)
    if isinstance(value, UnsupportedTensor):
        raise UnreadableTensor(f"is a {value.kind} tensor, {value.why}")
    if not isinstance(value, TensorRef):
        raise InputRefused("does not hold a tensor, although the metadata declare one")
    data, data_bytes = archive.storage(value.storage.key)
    layout, inside = locate_tensor("", value, data_bytes)
    if (layout.shape, layout.dtype.torch_name) != (chunk.shape, tensor.dtype_name):
        held = f"{layout.dtype.torch_name} {list(layout.shape)}"
        raise InputRefused(f"holds {held}, but the metadata declare {tensor.dtype_name} {list(chunk.shape)}")
    record = archive.checksums().find(data)
    crc32 = 0 if record is None else record.crc32
    described = data <= _LARGEST_HEAD and _described_crc32(window, data + data_bytes) == crc32
    head = window.read(0, data) if described else b""
    form = _Form(strides=layout.strides, offset=data + inside, data=data, data_bytes=data_bytes, head=head)
    return form, crc32


def _read_of_same(form: _Form) -> list[tuple[int, int]]:
    """Return the ranges to read to find out whether a chunk is of ``form``; the last ends with its descriptor."""
    end = form.data + form.data_bytes
    together = end + _DESCRIPTOR.size
    return [(0, together)] if together <= _ONE_READ else [(0, form.data), (end, _DESCRIPTOR.size)]


def _crc32_of_same(window: Window, form: _Form) -> int | None:
    """Return the CRC-32 of a chunk; ``None`` if the chunk is not of ``form``."""
    read = [window.read(begin, length) for begin, length in _read_of_same(form)]
    return _unpack(read[-1]) if read[0].startswith(form.head) else None


def _described_crc32(window: Window, end: int) -> int | None:
    """Return the CRC-32 after the data; ``None`` if there is none."""
    if end + _DESCRIPTOR.size > window.size():
        return None
    return _unpack(window.read(end, _DESCRIPTOR.size))


def _unpack(raw: bytes) -> int | None:
    """Return the CRC-32 at the end of ``raw``."""
    signature, crc32 = _DESCRIPTOR.unpack_from(raw, len(raw) - _DESCRIPTOR.size)
    return int(crc32) if signature == _DESCRIPTOR_SIGNATURE else None


def _located(form: _Form, crc32: int, start: int) -> LocatedChunk:
    has_checksum = crc32 and form.data_bytes  # torch writes 0 if checksums are switched off
    record = Record(offset=start + form.data, size=form.data_bytes, crc32=crc32) if has_checksum else None
    return LocatedChunk(strides=form.strides, offset=start + form.offset, record=record)
