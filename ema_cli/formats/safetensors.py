"""The safetensors format: read and build the header of a file.

A file is 8 bytes of little-endian header length, a JSON object ``{name: {dtype, shape, data_offsets}}`` with an
optional ``__metadata__`` of strings, and the data, without holes or overlaps. Tensors are written in the order of
their element type, then their name.
Reference: the format section of the safetensors README, and its ``Dtype`` enumeration.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from ema_cli.dtypes import BY_NAME, RANK, DType
from ema_cli.errors import InputRefused
from ema_cli.formats.json_text import JsonError, parse_object, refuse_large
from ema_cli.formats.state_dict.flat_optimizers import find_flat_optimizers
from ema_cli.formats.state_dict.step_keys import steps_in_texts
from ema_cli.formats.structure import MOST_DIMENSIONS, MOST_TENSORS, Structure, are_sizes, writable_name
from ema_cli.record import record
from ema_cli.records.garbage import without_collections
from ema_cli.records.live_snapshot import SNAPSHOT_KEY, method_of_snapshot
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, regex

LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
_ALIGNMENT = 8
_HALF_CHARACTER = regex("[\ud800-\udfff]")
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_METADATA_FIRST = regex(rb'\{"__metadata__":(\{(?:%b:%b(?:,(?=")|(?=\})))*+\}),(?=")' % (_TEXT, _TEXT), re.DOTALL)
"""The beginning of a header up to its first tensor."""
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first bytes of a file can be a header length followed by a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER  # noqa: PLR2004


def read_safetensors(source: ByteSource, pool: LayoutPool) -> Structure:
    """Read the header of a safetensors file; ``pool`` parses equal entries of files of equal data size once.

    Raises:
        InputRefused: the header is malformed, or does not match the data.

    """
    if source.size() < 8:  # noqa: PLR2004 - the header length
        raise InputRefused("is too short to be a safetensors file")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > LARGEST_HEADER:
        raise InputRefused(f"declares a header of {length:,} bytes, more than the limit of {LARGEST_HEADER:,}")
    if length > source.size() - 8:
        raise InputRefused(f"is truncated: its header should have {length:,} bytes, but the file has {source.size():,}")
    raw = source.read(8, length)
    entries, metadata = _read_header(raw, source.size() - 8 - length, pool)
    return Structure(
        format="safetensors",
        layouts=entries.layouts,
        offsets=array("q", [8 + length + begin for begin in entries.begins]),
        unreadable=entries.unreadable,
        digest=hashlib.sha256(raw).digest(),
        metadata=metadata,
        steps=tuple(steps_in_texts(metadata)),
        choice=_snapshot(metadata),
        ignored=entries.ignored,
    )


@record
class _Entries:
    """The tensors of a header."""

    layouts: tuple[TensorLayout, ...]
    begins: array[int]
    """Their first bytes in the data section."""
    unreadable: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    metadata: dict[str, str] | None
    """The metadata, if they are between the tensors; ``None`` if there are none."""


def _read_header(raw: bytes, data_bytes: int, pool: LayoutPool) -> tuple[_Entries, dict[str, str]]:
    """Return the tensors and the metadata.

    Metadata that come first, as the library writes them, are read apart: each checkpoint of a run may have its own.
    """
    try:
        refuse_large(raw)
        apart = _METADATA_FIRST.match(raw)
        text = (raw if apart is None else b"{" + raw[apart.end() :]).rstrip(b" ")  # the padding
        key = ("safetensors", hashlib.sha256(text).digest(), data_bytes)
        entries = pool.remember(key, lambda: _read_entries(text, data_bytes))
        if apart is None:
            return entries, entries.metadata or {}
        if entries.metadata is not None:
            raise JsonError('names "__metadata__" twice')
        return entries, _checked_metadata(parse_object(apart[1]))
    except JsonError as error:
        raise InputRefused(f"has a damaged header: it {error}") from error


def _read_entries(text: bytes, data_bytes: int) -> _Entries:
    with without_collections():
        entries, metadata = _parse(text, _shortener())
        read = {name: _entry(name, entry) for name, entry in entries.items()}
        _check_ranges([(begin, end) for _, begin, end in read.values()], data_bytes)
        states = find_flat_optimizers({name: getattr(layout, "shape", None) for name, (layout, _, _) in read.items()})
    ignored = frozenset(name for names in states.values() for name in names)
    tensors = [(name, layout, begin) for name, (layout, begin, _) in read.items() if name not in ignored]
    return _Entries(
        layouts=tuple(layout for _, layout, _ in tensors if isinstance(layout, TensorLayout)),
        begins=array("q", [begin for _, layout, begin in tensors if isinstance(layout, TensorLayout)]),
        unreadable=tuple((name, reason) for name, reason, _ in tensors if isinstance(reason, str)),
        ignored=tuple(name for name in read if name in ignored),
        metadata=metadata,
    )


def _snapshot(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a snapshot of a live EMA is, in words."""
    if SNAPSHOT_KEY not in metadata:
        return ()
    method = method_of_snapshot(metadata)
    return (f"saved by a live EMA: {method.label if method else 'its metadata are damaged'}",)


class Stored(Protocol):
    """A tensor of a file."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> DType:
        """Its element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""


T = TypeVar("T", bound=Stored)


def build_header(tensors: Iterable[T], metadata: Mapping[str, str]) -> tuple[bytes, list[T]]:
    """Return the bytes before the data section, and the tensors in the order of their data.

    The bytes equal those of ``safetensors.torch.save_file``, except that metadata keys are sorted.
    """
    ordered = sorted(tensors, key=lambda tensor: rank(tensor.name, tensor.dtype))
    parts = [f'"__metadata__":{_json(dict(sorted(metadata.items())))}'] if metadata else []
    position = 0
    for tensor in ordered:
        end = position + tensor.nbytes
        shape = ",".join(map(str, tensor.shape))
        parts.append(
            f'{_json(tensor.name)}:{{"dtype":"{tensor.dtype.name}","shape":[{shape}],"data_offsets":[{position},{end}]}}'
        )
        position = end
    return _header(f"{{{','.join(parts)}}}"), ordered


def rank(name: str, dtype: DType) -> tuple[int, str]:
    """Return the sort key of the tensors in a file."""
    return RANK[dtype.name], name


def header_with(raw: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the data section of a file whose header is ``raw``, with more metadata, sorted by key.

    The entries of the tensors keep their order.
    """
    entries, present = _parse(raw)
    return _header(_json({"__metadata__": dict(sorted({**(present or {}), **metadata}.items())), **entries}))


def _header(text: str) -> bytes:
    body = text.encode()
    padding = b" " * (-len(body) % _ALIGNMENT)
    return b"".join(((len(body) + len(padding)).to_bytes(8, "little"), body, padding))


def _parse(
    raw: bytes, short: Callable[[dict[str, object]], object] | None = None
) -> tuple[dict[str, object], dict[str, str] | None]:
    """Return the entries of the tensors, and the metadata; ``None`` if there are none."""
    try:
        header = parse_object(raw, short=short)
    except JsonError as error:
        raise InputRefused(f"has a damaged header: it {error}") from error
    if raw[:1] != b"{":
        raise InputRefused("has a damaged header: it is not a JSON object")
    metadata = _checked_metadata(header.pop("__metadata__")) if "__metadata__" in header else None
    if len(header) > MOST_TENSORS:
        raise InputRefused(f"declares {len(header):,} tensors, more than the limit of {MOST_TENSORS:,}")
    return header, metadata


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(_is_text(part) for item in metadata.items() for part in item):
        raise InputRefused("has a damaged header: its metadata must be strings")
    return metadata


def _is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold: JSON can spell half a surrogate pair."""
    return isinstance(value, str) and _HALF_CHARACTER.search(value) is None


def _shortener() -> Callable[[dict[str, object]], object]:
    """Return a function that makes the entry of a tensor a tuple, which takes a fifth of the memory.

    The tuple has the type (its name if it is unknown), the shape, the begin and the end; equal shapes are one object.
    Other objects are returned as they are.
    """
    shapes: dict[tuple[object, ...], tuple[object, ...]] = {}

    def shorten(value: dict[str, object]) -> object:
        match value:
            case {"dtype": str(dtype), "shape": [*sizes], "data_offsets": [int(begin), int(end)]}:
                shape = tuple(sizes)
                shape = shapes.setdefault(shape, shape) if are_sizes(shape) else shape
                return BY_NAME.get(dtype, dtype), shape, begin, end
        return value

    return shorten


def _entry(name: str, entry: object) -> tuple[TensorLayout | str, int, int]:
    """Return the layout and the byte range of a short header entry; the reason instead of a layout if unreadable."""
    if not isinstance(entry, tuple):
        raise InputRefused(f"has a damaged entry for tensor {quoted(name)}")
    dtype, shape, begin, end = entry
    if len(shape) > MOST_DIMENSIONS or not are_sizes(shape):
        raise InputRefused(f"tensor {quoted(name)} has a damaged shape")
    if not writable_name(name):
        raise InputRefused(f"tensor {quoted(name)} has a name that cannot be written")
    if not are_sizes((begin, end)):
        raise InputRefused(f"tensor {quoted(name)} has damaged data offsets")
    if isinstance(dtype, str):
        return f"has the element type {quoted(dtype)}, which cannot be averaged", begin, end
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise InputRefused(f"tensor {quoted(name)} declares {end - begin:,} bytes, which do not match its shape")
    return TensorLayout(name=name, dtype=dtype, shape=shape, strides=None), begin, end


def _check_ranges(ranges: list[tuple[int, int]], data_bytes: int) -> None:
    """Check that the ranges tile the data section: no hole, no overlap, nothing after them."""
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise InputRefused(f"has {'a gap' if begin > position else 'an overlap'} in its data at byte {position:,}")
        position = end
    if position > data_bytes:
        raise InputRefused(f"is truncated: its tensors need {position:,} bytes of data, but it has {data_bytes:,}")
    if position < data_bytes:
        raise InputRefused(f"has {data_bytes - position:,} bytes after its last tensor")
