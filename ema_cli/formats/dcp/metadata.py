"""The ``.metadata`` of a torch.distributed.checkpoint folder, parsed into plain records.

Input -> output: the bytes of ``.metadata``, a bare pickle -> the tensors with their chunks, the other objects, and
the bytes of each of them. The pickle is read by the inert machine, so nothing that it names is imported or called;
classes are matched by name. Every number is checked to be one; the size of the files is checked where they are read.
Source of the records: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``, version 1.0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import ByteRange, Chunk, SavedItems, SavedTensor, Sizes
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.foreign_formats import refuse_pointer
from ema_cli.formats.inert_pickle.costs import MOST_BYTES
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError
from ema_cli.formats.structure import MOST_DIMENSIONS, MOST_TENSORS, SIZE_LIMIT, are_sizes
from ema_cli.formats.torch.objects import reduce
from ema_cli.text import quoted

_VERSIONS = (None, "1.0.0")
_MOST_CHUNKS = 2_000_000
_MOST_PER_BYTE = 30
"""Memory for each byte of the pickle, as the machine counts it; saves of thousands of ranks take twenty."""
_MOST_FIELDS = 64
_DEEPEST = 64
"""Names of a path in the nested state dict."""
_CONVERT = "if you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR out.pt"

_Ranges = dict[tuple[str, str], ByteRange]
"""The bytes of every item, by name and origin. Origins are text, as tuples of numbers can be made to collide."""


def parse_metadata(raw: bytes) -> SavedItems:
    """Return the items that ``.metadata`` declares.

    Raises:
        InputRefused: it is damaged, of another version, or its chunks do not tile their tensors.

    """
    try:
        root, _ = read_pickle(raw, reduce=reduce, most_bytes=max(MOST_BYTES, _MOST_PER_BYTE * len(raw)))
    except PickleError as error:
        refuse_pointer(raw, ".metadata")
        raise InputRefused(f"has a damaged .metadata: {error}") from error
    fields = _fields(root, "Metadata")
    version = fields.get("version")
    if version not in _VERSIONS:
        raise _unknown(f"its version is {quoted(version) if isinstance(version, str) else 'not a string'}")
    declared, ranges = _mapping(fields, "state_dict_metadata"), _ranges(_mapping(fields, "storage_data"))
    if len(declared) > MOST_TENSORS:
        raise InputRefused(f"declares {len(declared):,} items, more than the limit of {MOST_TENSORS:,}")
    items = _ItemParser(ranges)
    return SavedItems(
        items={_text(name): items.parse(_text(name), item) for name, item in declared.items()},
        paths=_paths(fields.get("planner_data")),
        ends=_ends(ranges.values()),
        reshaped=_reshaped(fields.get("mcore_data")),
    )


class _ItemParser:
    """Parses the declarations of items. Counts every chunk, as declarations can be shared."""

    def __init__(self, ranges: _Ranges) -> None:
        self._ranges = ranges
        self._chunks = 0

    def parse(self, name: str, item: object) -> SavedTensor | ByteRange:
        if _is(item, "BytesStorageMetadata"):
            return self._stored(name, None)
        try:
            fields = _fields(item, "TensorStorageMetadata")
            return self._tensor(name, fields)
        except InputRefused as refused:
            raise InputRefused(f"tensor {quoted(name)} {refused.message}", hint=refused.hint) from refused

    def _tensor(self, name: str, fields: Mapping[str, object]) -> SavedTensor:
        shape, listed = _sizes(fields.get("size")), fields.get("chunks")
        if not isinstance(listed, list):
            raise _unknown("it has no list of chunks")
        self._chunks += len(listed)
        if self._chunks > _MOST_CHUNKS:
            raise InputRefused(f"exceeds the limit of {_MOST_CHUNKS:,} chunks in a checkpoint")
        rectangles = [_rectangle(chunk) for chunk in listed]
        check_tiling(shape, rectangles)
        chunks = [
            Chunk(origin=origin, shape=sizes, stored=self._stored(name, origin))
            for origin, sizes in sorted(rectangles)
            if 0 not in sizes
        ]
        return SavedTensor(dtype_name=_dtype_name(fields.get("properties")), shape=shape, chunks=tuple(chunks))

    def _stored(self, name: str, origin: Sizes | None) -> ByteRange:
        stored = self._ranges.get((name, str(origin)))
        if stored is None:
            where = "" if origin is None else f" at {list(origin)}"
            raise InputRefused(f"has no bytes for {quoted(name)}{where}: the save is incomplete")
        return stored


def _ranges(declared: Mapping[object, object]) -> _Ranges:
    """Return the bytes of every item, by name and origin, which torch's own index compares, too."""
    ranges: _Ranges = {}
    for index, info in declared.items():
        key = _fields(index, "MetadataIndex")
        offset = key.get("offset")
        name = _text(key.get("fqn"))
        origin = str(None if offset is None else _sizes(offset))
        if (name, origin) in ranges:
            raise InputRefused(f"declares {quoted(name)} twice at the same origin")
        ranges[name, origin] = _byte_range(name, _fields(info, "_StorageInfo"))
    _refuse_overlaps(ranges)
    return ranges


def _byte_range(name: str, info: Mapping[str, object]) -> ByteRange:
    match info:
        case {"transform_descriptors": descriptors} if descriptors:
            listed = descriptors if isinstance(descriptors, list | tuple) else [descriptors]
            extensions = ", ".join(quoted(part) for part in listed[:3] if isinstance(part, str))
            raise InputRefused(
                f"holds {quoted(name)} behind a stream extension ({extensions}), so its bytes cannot be located",
                hint="save it again without extensions of the FileSystemWriter",
            )
        case {"relative_path": str(file), "offset": int(offset), "length": int(length)}:
            if are_sizes((offset, length)) and length > 0:
                return ByteRange(file=file, offset=offset, length=length)
    raise InputRefused(f"declares an invalid byte range for {quoted(name)}")


def _refuse_overlaps(ranges: _Ranges) -> None:
    """Refuse items that share bytes: reading all items must not cost more than the files have."""
    ordered = sorted((stored.file, stored.offset, stored.length, name) for (name, _), stored in ranges.items())
    for (file, offset, length, name), (next_file, next_offset, _, other) in pairwise(ordered):
        if file == next_file and offset + length > next_offset:
            raise InputRefused(
                f"declares {quoted(name)} and {quoted(other)} in the same bytes of {quoted(file)}",
                hint="only SerializationFormat.TORCH_SAVE, the default, is supported",
            )


def _ends(ranges: Iterable[ByteRange]) -> dict[str, int]:
    ends: dict[str, int] = {}
    for stored in ranges:
        ends[stored.file] = max(ends.get(stored.file, 0), stored.offset + stored.length)
    return ends


def _paths(planner_data: object) -> dict[str, tuple[str, ...]]:
    """Return the paths that the default planner records; other planners may store anything there."""
    if not isinstance(planner_data, dict):
        return {}
    paths = {}
    for name, path in planner_data.items():
        if isinstance(name, str) and isinstance(path, tuple) and 0 < len(path) <= _DEEPEST:
            if not all(isinstance(part, str) or (type(part) is int and abs(part) < SIZE_LIMIT) for part in path):
                raise _unknown(f"the path of {quoted(name)} does not consist of names")
            paths[name] = tuple(str(part) for part in path)
    return paths


def _reshaped(data: object) -> frozenset[str]:
    """Return the names of the tensors that Megatron's planner reshaped."""
    if not isinstance(data, dict):
        return frozenset()
    return frozenset(
        name for name, entry in data.items() if isinstance(name, str) and isinstance(entry, dict) and entry
    )


def _rectangle(chunk: object) -> tuple[Sizes, Sizes]:
    fields = _fields(chunk, "ChunkStorageMetadata")
    return _sizes(fields.get("offsets")), _sizes(fields.get("sizes"))


def _dtype_name(properties: object) -> str:
    """Return the name of the element type, the first of the properties, which are pickled as a tuple."""
    state = properties.state if isinstance(properties, Inert) and _is(properties, "TensorProperties") else None
    match state:
        case (Global(module="torch", name=name), *_) | {"dtype": Global(module="torch", name=name)}:
            return name
    raise _unknown("it has no element type")


def _sizes(value: object) -> Sizes:
    numbers = tuple(value) if isinstance(value, list | tuple) else None
    if numbers is None or len(numbers) > MOST_DIMENSIONS or not are_sizes(numbers):
        raise InputRefused("has a damaged shape")
    return numbers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _unknown("a name is not a string")
    return value


def _mapping(fields: Mapping[str, object], name: str) -> Mapping[object, object]:
    found = fields.get(name)
    if not isinstance(found, dict):
        raise _unknown(f"it has no {name}")
    return found


def _is(value: object, name: str) -> bool:
    """Whether ``value`` is an object of torch's class ``name``, in whichever module torch defines it."""
    kind = value.kind if isinstance(value, Inert) else None
    return isinstance(kind, Global) and kind.name == name and f"{kind.module}.".startswith("torch.distributed.")


def _fields(value: object, name: str) -> Mapping[str, object]:
    """Return the fields of an object of the class ``name``."""
    if not isinstance(value, Inert) or not _is(value, name) or not isinstance(value.state, dict):
        raise _unknown(f"a {name} object is missing")
    if len(value.state) > _MOST_FIELDS:  # many objects can share it
        raise _unknown(f"a {name} object is too large")
    return {field: content for field, content in value.state.items() if isinstance(field, str)}


def _unknown(reason: str) -> InputRefused:
    return InputRefused(f"has a .metadata of an unknown kind: {reason}", hint=_CONVERT)
