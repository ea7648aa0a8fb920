"""Where the elements of a saved chunk begin: each is a complete ``torch.save`` archive inside a ``.distcp`` file.

Archives of tensors of one type and shape begin with the same bytes, up to the data. So an archive is taken apart
once (directory, pickle, records); of others like it, those first bytes are compared, and the checksum behind the data
is read. A checkpoint of thousands of chunks then costs one or two small reads for each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import Chunk, SavedTensor
from ema_cli.formats.dcp.window import Window
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.inert_pickle.values import PickleError
from ema_cli.formats.structure import UnreadableTensor
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor, place, reduce, storage_from_persistent_id
from ema_cli.formats.torch.zip_archive import Archive, looks_like_zip
from ema_cli.formats.torch.zip_format import refuse_other_kinds
from ema_cli.storage.checksums import Record
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_LARGEST_PICKLE = 1 << 20
_LARGEST_HEAD = 1 << 12
"""Bytes in front of the data that are worth keeping to compare with."""
_ONE_READ = 1 << 14
"""A chunk up to this size is read whole rather than its two ends."""
_DESCRIPTOR = struct.Struct("<4sL")
"""Behind the data of a record: a signature and the CRC-32. Reference: APPNOTE 4.3.9 of the zip format."""
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A chunk with the place of its elements."""

    strides: tuple[int, ...] | None
    offset: int
    """Byte of the file where the first element lies."""
    record: Record | None
    """The run of bytes that the archive has a checksum of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What archives of one size, type and shape have in common; places count from the begin of the archive."""

    strides: tuple[int, ...] | None
    offset: int
    """Of the first element."""
    data: int
    """Where the record of the data begins."""
    data_bytes: int
    head: bytes
    """All bytes in front of it."""


class Chunks:
    """Locates chunks, and remembers the forms of those that were taken apart."""

    def __init__(self) -> None:
        self._forms: dict[object, _Form] = {}

    def announce(self, source: ByteSource, tensor: SavedTensor, chunk: Chunk) -> None:
        """Tell ``source`` what ``locate`` will read, if chunks like this one are known."""
        form = self._forms.get(kind(tensor, chunk))
        if form is not None:
            for begin, length in _read_of_same(form):
                source.will_need(chunk.stored.offset + begin, length)

    def locate(self, source: ByteSource, tensor: SavedTensor, chunk: Chunk) -> Located:
        """Return where the elements of ``chunk`` lie in ``source``.

        Raises:
            UnreadableTensor: they are no plain numbers of a type that we read.
            InputRefused: the archive is not there to its end, damaged, or holds something else than was declared.

        """
        window = Window(source, chunk.stored.offset, chunk.stored.length)
        form = self._forms.get(kind(tensor, chunk))
        if form is not None:
            crc32 = _crc32_of_same(window, form)
            if crc32 is not None:
                return _located(form, crc32, chunk.stored.offset)
        form, crc32 = _take_apart(window, tensor, chunk)
        if form.head:
            self._forms[kind(tensor, chunk)] = form
        return _located(form, crc32, chunk.stored.offset)


def kind(tensor: SavedTensor, chunk: Chunk) -> object:
    """Return what is equal for chunks whose archives may have one form."""
    return chunk.stored.length, tensor.dtype_name, chunk.shape


def open_archive(window: Window) -> tuple[Archive, object]:
    """Return the archive in ``window``, and the inert value of its pickle.

    Raises:
        InputRefused: it is not what ``torch.save`` writes.

    """
    if not looks_like_zip(window.read(0, min(4, window.size()))):
        raise InputRefused(
            "is not a torch.save archive, as the default serialization format of torch.distributed.checkpoint is",
            hint="save it with serialization_format=SerializationFormat.TORCH_SAVE",
        )
    archive = Archive(window)
    refuse_other_kinds(archive)
    try:
        pickle = archive.read("data.pkl", most=_LARGEST_PICKLE)
        value, _ = read_pickle(pickle, reduce=reduce, persistent_load=storage_from_persistent_id)
    except PickleError as error:
        raise InputRefused(f"has a damaged pickle: {error}") from error
    return archive, value


def _take_apart(window: Window, tensor: SavedTensor, chunk: Chunk) -> tuple[_Form, int]:
    """Return the form of a chunk and its CRC-32, 0 if it has none. The form has no head if others cannot be like it."""
    archive, value = open_archive(window)
    if isinstance(value, UnsupportedTensor):
        raise UnreadableTensor(f"is a {value.kind} tensor, {value.why}")
    if not isinstance(value, TensorRef):
        raise InputRefused("does not hold a tensor, where one was declared")
    data, data_bytes = archive.storage(value.storage.key)
    layout, inside = place("", value, data_bytes)
    if (layout.shape, layout.dtype.torch_name) != (chunk.shape, tensor.dtype_name):
        held = f"{layout.dtype.torch_name} {list(layout.shape)}"
        raise InputRefused(f"holds {held}, where {quoted(tensor.dtype_name)} {list(chunk.shape)} was declared")
    record = archive.checksums().find(data)
    crc32 = 0 if record is None else record.crc32
    described = data <= _LARGEST_HEAD and _described_crc32(window, data + data_bytes) == crc32
    head = window.read(0, data) if described else b""
    form = _Form(strides=layout.strides, offset=data + inside, data=data, data_bytes=data_bytes, head=head)
    return form, crc32


def _read_of_same(form: _Form) -> list[tuple[int, int]]:
    """Return which ranges tell whether a chunk is of ``form``: the last ends with what stands behind the data."""
    end = form.data + form.data_bytes
    together = end + _DESCRIPTOR.size
    return [(0, together)] if together <= _ONE_READ else [(0, form.data), (end, _DESCRIPTOR.size)]


def _crc32_of_same(window: Window, form: _Form) -> int | None:
    """Return the CRC-32 of a chunk that is of ``form``; ``None`` if it is of another."""
    read = [window.read(begin, length) for begin, length in _read_of_same(form)]
    return _unpack(read[-1]) if read[0].startswith(form.head) else None


def _described_crc32(window: Window, end: int) -> int | None:
    """Return the CRC-32 that stands behind the data; ``None`` if it does not."""
    if end + _DESCRIPTOR.size > window.size():
        return None
    return _unpack(window.read(end, _DESCRIPTOR.size))


def _unpack(raw: bytes) -> int | None:
    """Return the CRC-32 at the end of ``raw``."""
    signature, crc32 = _DESCRIPTOR.unpack_from(raw, len(raw) - _DESCRIPTOR.size)
    return int(crc32) if signature == _DESCRIPTOR_SIGNATURE else None


def _located(form: _Form, crc32: int, start: int) -> Located:
    has_checksum = crc32 and form.data_bytes  # torch writes 0 when told to have none
    record = Record(offset=start + form.data, size=form.data_bytes, crc32=crc32) if has_checksum else None
    return Located(strides=form.strides, offset=start + form.offset, record=record)
