"""What the ``.metadata`` of a torch.distributed.checkpoint folder declares, as plain records.

Input -> output: the bytes of ``.metadata``, a bare pickle -> the tensors with their pieces, the other objects, and
where each of them lies. The pickle is read by the inert machine, so nothing that it names is imported or called;
classes are matched by name. Every number is checked to be one; whether bytes are there is checked where they are read.
Source of the records: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``, version 1.0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import Chunk, Saved, SavedTensor, Sizes, Stored
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.inert_pickle.costs import MOST_BYTES
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError
from ema_cli.formats.structure import MOST_TENSORS
from ema_cli.formats.torch.objects import reduce
from ema_cli.text import quoted

_VERSIONS = (None, "1.0.0")
_MOST_CHUNKS = 2_000_000
_MOST_PER_BYTE = 30
"""Memory for each byte of the pickle, as the machine counts it: twenty of thousands of ranks are real."""
_MOST_DIMENSIONS = 64
_MOST_FIELDS = 64
_DEEPEST = 64
"""Names of a path in the nested state dict."""
_LIMIT = 1 << 62
_CONVERT = "if you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR out.pt"


_Places = dict[tuple[str, str], Stored]
"""Where everything lies, by name and origin. Origins are text, as numbers can be chosen to have the same hash."""


def parse_metadata(raw: bytes) -> Saved:
    """Return what ``.metadata`` declares.

    Raises:
        InputRefused: it is damaged, of another version, or its chunks do not tile their tensors.

    """
    try:
        root, _ = read_pickle(raw, reduce=reduce, most_bytes=max(MOST_BYTES, _MOST_PER_BYTE * len(raw)))
    except PickleError as error:
        raise InputRefused(f"has a damaged .metadata: {error}") from error
    fields = _fields(root, "Metadata")
    version = fields.get("version")
    if version not in _VERSIONS:
        raise _unknown(f"its version is {quoted(version) if isinstance(version, str) else 'no text'}")
    declared, places = _mapping(fields, "state_dict_metadata"), _places(_mapping(fields, "storage_data"))
    if len(declared) > MOST_TENSORS:
        raise InputRefused(f"declares {len(declared):,} items; more than {MOST_TENSORS:,} are refused")
    items = _Items(places)
    return Saved(
        items={_text(name): items.read(_text(name), item) for name, item in declared.items()},
        paths=_paths(fields.get("planner_data")),
        ends=_ends(places.values()),
        reshaped=_reshaped(fields.get("mcore_data")),
    )


class _Items:
    """Puts together what is declared of an item and where it lies. Counts the chunks, whatever is shared."""

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._chunks = 0

    def read(self, name: str, item: object) -> SavedTensor | Stored:
        if _is(item, "BytesStorageMetadata"):
            return self._place(name, None)
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
            raise InputRefused(f"is one of more than {_MOST_CHUNKS:,} pieces, which are refused")
        rectangles = [_rectangle(chunk) for chunk in listed]
        check_tiling(shape, rectangles)
        chunks = [
            Chunk(origin=origin, shape=sizes, stored=self._place(name, origin))
            for origin, sizes in sorted(rectangles)
            if 0 not in sizes
        ]
        return SavedTensor(dtype_name=_dtype_name(fields.get("properties")), shape=shape, chunks=tuple(chunks))

    def _place(self, name: str, origin: Sizes | None) -> Stored:
        stored = self._places.get((name, str(origin)))
        if stored is None:
            where = "" if origin is None else f" at {list(origin)}"
            raise InputRefused(f"has no place for its piece {quoted(name)}{where}: the save is incomplete")
        return stored


def _places(declared: Mapping[object, object]) -> _Places:
    """Return where everything lies, by name and origin: the index that torch keys it by compares by these two."""
    places: _Places = {}
    for index, info in declared.items():
        key = _fields(index, "MetadataIndex")
        offset = key.get("offset")
        name = _text(key.get("fqn"))
        origin = str(None if offset is None else _sizes(offset))
        if (name, origin) in places:
            raise InputRefused(f"declares two places for one piece of {quoted(name)}")
        places[name, origin] = _stored(name, _fields(info, "_StorageInfo"))
    _refuse_overlaps(places)
    return places


def _stored(name: str, info: Mapping[str, object]) -> Stored:
    match info:
        case {"transform_descriptors": descriptors} if descriptors:
            listed = descriptors if isinstance(descriptors, list | tuple) else [descriptors]
            told = ", ".join(quoted(part) for part in listed[:3] if isinstance(part, str))
            raise InputRefused(
                f"holds {quoted(name)} behind a stream extension ({told}), so that it cannot be read piece by piece",
                hint="save it again without extensions of the FileSystemWriter",
            )
        case {"relative_path": str(file), "offset": int(offset), "length": int(length)}:
            if 0 <= offset < _LIMIT and 0 < length < _LIMIT and bool not in (type(offset), type(length)):
                return Stored(file=file, offset=offset, length=length)
    raise InputRefused(f"declares a damaged place for {quoted(name)}")


def _refuse_overlaps(places: _Places) -> None:
    """Each item has bytes of its own, so reading all of them costs no more than the files have."""
    ordered = sorted((stored.file, stored.offset, stored.length, name) for (name, _), stored in places.items())
    for (file, offset, length, name), (next_file, next_offset, _, other) in pairwise(ordered):
        if file == next_file and offset + length > next_offset:
            raise InputRefused(
                f"declares {quoted(name)} and {quoted(other)} in the same bytes of {quoted(file)}",
                hint="only what is saved with SerializationFormat.TORCH_SAVE, the default, can be read",
            )


def _ends(places: Iterable[Stored]) -> dict[str, int]:
    ends: dict[str, int] = {}
    for stored in places:
        ends[stored.file] = max(ends.get(stored.file, 0), stored.offset + stored.length)
    return ends


def _paths(planner_data: object) -> dict[str, tuple[str, ...]]:
    """Return the paths that the default planner writes down; other planners may keep anything there."""
    if not isinstance(planner_data, dict):
        return {}
    paths = {}
    for name, path in planner_data.items():
        if isinstance(name, str) and isinstance(path, tuple) and 0 < len(path) <= _DEEPEST:
            if not all(isinstance(part, str) or (type(part) is int and abs(part) < _LIMIT) for part in path):
                raise _unknown(f"the path of {quoted(name)} is not of names")
            paths[name] = tuple(str(part) for part in path)
    return paths


def _reshaped(data: object) -> frozenset[str]:
    """Return the names of which Megatron's planner remembers another shape."""
    if not isinstance(data, dict):
        return frozenset()
    return frozenset(name for name, told in data.items() if isinstance(name, str) and isinstance(told, dict) and told)


def _rectangle(chunk: object) -> tuple[Sizes, Sizes]:
    fields = _fields(chunk, "ChunkStorageMetadata")
    return _sizes(fields.get("offsets")), _sizes(fields.get("sizes"))


def _dtype_name(properties: object) -> str:
    """Return the name of the element type: the first of the properties, which pickle as a tuple."""
    state = properties.state if isinstance(properties, Inert) and _is(properties, "TensorProperties") else None
    match state:
        case (Global(module="torch", name=name), *_) | {"dtype": Global(module="torch", name=name)}:
            return name
    raise _unknown("it has no element type")


def _sizes(value: object) -> Sizes:
    numbers = tuple(value) if isinstance(value, list | tuple) else None
    if numbers is None or len(numbers) > _MOST_DIMENSIONS:
        raise InputRefused("has a damaged shape")
    if not all(type(number) is int and 0 <= number < _LIMIT for number in numbers):
        raise InputRefused("has a damaged shape")
    return numbers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _unknown("a name is not text")
    return value


def _mapping(fields: Mapping[str, object], name: str) -> Mapping[object, object]:
    found = fields.get(name)
    if not isinstance(found, dict):
        raise _unknown(f"it has no {name}")
    return found


def _is(value: object, name: str) -> bool:
    """Whether ``value`` stands for an object of torch's class ``name``, wherever torch keeps that class."""
    kind = value.kind if isinstance(value, Inert) else None
    return isinstance(kind, Global) and kind.name == name and f"{kind.module}.".startswith("torch.distributed.")


def _fields(value: object, name: str) -> Mapping[str, object]:
    """Return the fields of an object of the class ``name``."""
    if not isinstance(value, Inert) or not _is(value, name) or not isinstance(value.state, dict):
        raise _unknown(f"there is no {name} where one belongs")
    if len(value.state) > _MOST_FIELDS:  # many objects can share it
        raise _unknown(f"there is no {name} where one belongs")
    return {field: content for field, content in value.state.items() if isinstance(field, str)}


def _unknown(what: str) -> InputRefused:
    return InputRefused(f"has a .metadata of a kind that is not known: {what}", hint=_CONVERT)
