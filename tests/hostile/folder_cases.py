"""Checkpoint folders that lie: indexes that name files elsewhere, shards of two saves, DCP metadata that attacks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tests.hostile.cases import OK, REFUSED, Case, Maker
from tests.hostile.foreign_cases import POINTER
from tests.hostile.opcodes import SHELL, call, glob, mapping, num, numbers, stop, tensor, text, tup
from tests.hostile.pickle_cases import CANARY, laughs
from tests.hostile.safetensors_cases import entry, one
from tests.hostile.zips import checkpoint

Contents = Mapping[str, bytes | str]
"""The contents of a folder; text is the target of a link."""
_INDEX = "model.safetensors.index.json"
_FIRST, _SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
_SHARDS = {_FIRST: one(name=b"a"), _SECOND: one(name=b"b")}
_MAP = {"a": _FIRST, "b": _SECOND}
_METADATA = "torch.distributed.checkpoint.metadata"


def folder_of(contents: Contents) -> Maker:
    """Return the maker of a folder with files, and links where the content is text; names may have one slash."""

    def make(path: Path) -> None:
        path.mkdir()
        for name, content in contents.items():
            (path / name).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (path / name).symlink_to(content)
            else:
                (path / name).write_bytes(content)

    return make


def _index(weight_map: object, **more: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map, **more}).encode()


def _sharded(index: bytes, **shards: bytes) -> Contents:
    return {_INDEX: index, **_SHARDS, **shards}


_HF_BAD: dict[str, tuple[Contents, str]] = {
    "no shards": ({_INDEX: _index(_MAP)}, "incomplete"),
    "one shard": ({_INDEX: _index(_MAP), _FIRST: _SHARDS[_FIRST]}, "incomplete"),
    "one shard without an index": ({_FIRST: _SHARDS[_FIRST]}, "incomplete"),
    "parent": (_sharded(_index({"a": "../" + _FIRST})), "folder of their index"),
    "absolute": (_sharded(_index({"a": "/etc/passwd"})), "folder of their index"),
    "back slash": (_sharded(_index({"a": "..\\" + _FIRST})), "folder of their index"),
    "dot": (_sharded(_index({"a": "."})), "folder of their index"),
    "dots": (_sharded(_index({"a": ".."})), "folder of their index"),
    "no name": (_sharded(_index({"a": ""})), "folder of their index"),
    "NUL in a name": (_sharded(_index({"a": "a\0b"})), "incomplete"),
    "escape in a name": (_sharded(_index({"a": "\x1b[31m"})), "incomplete"),
    "half a character in a name": (_sharded(_index({"a": "\ud800"})), "incomplete"),
    "itself": (_sharded(_index({"a": _INDEX})), "the index of a sharded model"),
    "tensor elsewhere": (_sharded(_index({"a": _SECOND, "b": _FIRST})), "missing from the shards"),
    "tensor of nobody": (_sharded(_index({**_MAP, "c": _FIRST})), "missing from the shards"),
    "empty map": (_sharded(_index({})), "no weight_map"),
    "map of numbers": (_sharded(_index({"a": 1})), "no weight_map"),
    "map of lists": (_sharded(_index({"a": [_FIRST]})), "no weight_map"),
    "map is a list": (_sharded(_index([_FIRST])), "no weight_map"),
    "no map": (_sharded(b"{}"), "no weight_map"),
    "no JSON": (_sharded(b"not JSON"), "not JSON"),
    "empty index": (_sharded(b""), "not JSON"),
    "index is a list": (_sharded(b"[]"), "not a JSON object"),
    "key twice": (_sharded(b'{"weight_map":{"a":"x","a":"y"}}'), "twice"),
    "NaN": (_sharded(b'{"weight_map":NaN}'), "NaN"),
    "depth": (_sharded(b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
    "giant number": (_sharded(b'{"weight_map":' + b"9" * 5000 + b"}"), "JSON"),
    "index of 34 MB": (_sharded(b'{"a":"' + b"a" * 34_000_000 + b'"}'), "more than the limit"),
    "million entries": (_sharded(b'{"a":[' + b"0," * 1_000_000 + b"0]}"), "entries"),
    "shard is cut": (_sharded(_index(_MAP), **{_FIRST: one(name=b"a")[:-1]}), "truncated"),
    "shard is empty": (_sharded(_index(_MAP), **{_FIRST: b""}), "is empty"),
    "shard is text": (_sharded(_index(_MAP), **{_FIRST: b"404"}), 'begins with the text "404"'),
    "shard is a pointer": (_sharded(_index(_MAP), **{_FIRST: POINTER}), "git lfs pull"),
    "index is a pointer": (_sharded(POINTER), "git lfs pull"),
    "shards alike with marks in their names": (
        {"\x1b[31m-00001-of-00002.safetensors": one(name=b"a"), "\x1b[31m-00002-of-00002.safetensors": one(name=b"a")},
        "two shards",
    ),
    "shards alike": ({_FIRST: one(name=b"a"), _SECOND: one(name=b"a")}, "two shards"),
    "two models": ({"model.safetensors": one(), "adapter_model.safetensors": one()}, "several models"),
    "model is cut": ({"model.safetensors": one()[:-1]}, "truncated"),
    "trainer state": (
        {"model.safetensors": one(), "trainer_state.json": b'{"global_step":1,"global_step":2}'},
        "twice",
    ),
    "lies of a shard": (_sharded(_index(_MAP), **{_FIRST: one(entry(shape=(5,)), name=b"a")}), "do not match"),
}
_HF_GOOD: dict[str, tuple[Contents, str]] = {
    "shards": (_sharded(_index(_MAP)), ""),
    "shards without an index": (_SHARDS, ""),
    "one file": ({"model.safetensors": one(), "config.json": b"{}"}, ""),
    "stale shard": (_sharded(_index(_MAP), **{"model-00003-of-00003.safetensors": b"old"}), ""),
    "damaged configuration": ({"model.safetensors": one(), "config.json": b"\xff{"}, ""),
    "NaN in the trainer's log": (
        {"model.safetensors": one(), "trainer_state.json": b'{"global_step": 5, "log_history": [{"loss": NaN}]}'},
        "",
    ),
    "giant step": (
        {"model.safetensors": one(), "trainer_state.json": b'{"global_step": ' + b"9" * 4000 + b"}"},
        "",
    ),
    "pickled shards": (
        {
            "pytorch_model.bin.index.json": _index({"w": "pytorch_model-00001-of-00001.bin"}),
            "pytorch_model-00001-of-00001.bin": checkpoint(),
        },
        "",
    ),
}


def _made(name: str, module: str = _METADATA, **fields: bytes) -> bytes:
    """Push an object with its fields, as dataclasses are pickled."""
    return glob(module, name) + b")\x81" + mapping(**fields) + b"b"


def dcp_chunk(offsets: bytes = numbers((0,)), sizes: bytes = numbers((4,))) -> bytes:
    """Push the offsets of a piece in its tensor."""
    return _made("ChunkStorageMetadata", offsets=offsets, sizes=sizes)


_PROPERTIES = glob(_METADATA, "TensorProperties") + b")\x81" + tup(glob("torch", "float32"), b"\x89") + b"b"
PIECE = checkpoint(pickle=stop(tensor()))
"""The archive of one tensor."""
_SQUARE = checkpoint(pickle=stop(tensor(shape=(2, 2), strides=(2, 1))))
DATA = "__0_0.distcp"
"""The file with the archive."""


def dcp_tensor(chunks: bytes | None = None, *, size: bytes = numbers((4,)), properties: bytes = _PROPERTIES) -> bytes:
    """Push the declaration of a tensor."""
    listed = b"](" + (dcp_chunk() if chunks is None else chunks) + b"e"
    return _made("TensorStorageMetadata", properties=properties, size=size, chunks=listed)


def dcp_place(file: bytes | None = None, offset: int = 0, length: int | None = None, **more: bytes) -> bytes:
    """Push the location of a piece."""
    fields = {
        "relative_path": text(DATA) if file is None else file,
        "offset": num(offset),
        "length": num(len(PIECE) if length is None else length),
    }
    return _made("_StorageInfo", "torch.distributed.checkpoint.filesystem", **fields, **more)


def dcp_at(name: bytes | None = None, offset: bytes = numbers((0,))) -> bytes:
    """Push the key of a piece."""
    return _made("MetadataIndex", fqn=text("w") if name is None else name, offset=offset, index=b"N")


def dcp_metadata(
    items: bytes | None = None, places: bytes | None = None, *, version: bytes = b"N", planner: bytes = b"N"
) -> bytes:
    """Return the bytes of ``.metadata``."""
    items = mapping(w=dcp_tensor()) if items is None else items
    places = b"}(" + (dcp_at() + dcp_place() if places is None else places) + b"u"
    return stop(
        _made("Metadata", state_dict_metadata=items, storage_data=places, version=version, planner_data=planner)
    )


def _dcp(metadata: bytes | None = None, piece: bytes = PIECE, **more: bytes | str) -> Contents:
    return {".metadata": dcp_metadata() if metadata is None else metadata, DATA: piece, **more}


_DCP_BAD: dict[str, tuple[Contents, str]] = {
    "no metadata": ({DATA: PIECE}, "has no .metadata"),
    "empty metadata": (_dcp(b""), "damaged .metadata"),
    "metadata is text": (_dcp(b"404 Not Found"), "damaged .metadata"),
    "metadata is a number": (_dcp(stop(num(1))), "of an unknown kind"),
    "metadata is cut": (_dcp(dcp_metadata()[:-20]), "damaged .metadata"),
    "metadata calls": (_dcp(stop(call(SHELL, text("touch canary")))), "of an unknown kind"),
    "metadata refers": (_dcp(stop(b"NQ")), "damaged .metadata"),
    "other class": (_dcp(stop(glob("os", "Metadata") + b")\x81}b")), "of an unknown kind"),
    "other version": (_dcp(dcp_metadata(version=text("\x1b[31m9"))), "of an unknown kind"),
    "laughing version": (_dcp(dcp_metadata(version=laughs(200))), "of an unknown kind"),
    "giant version": (_dcp(dcp_metadata(version=b"\x8b\0\x40\0\0" + b"\x01" * 0x4000)), "of an unknown kind"),
    "object as version": (_dcp(dcp_metadata(version=glob("x", "y") + b")Rq\x00h\x00b")), "of an unknown kind"),
    "no chunks": (_dcp(dcp_metadata(mapping(w=dcp_tensor(b"")))), "incomplete"),
    "hole": (_dcp(dcp_metadata(mapping(w=dcp_tensor(size=numbers((5,)))))), "in no piece"),
    "overlap": (
        _dcp(
            dcp_metadata(
                mapping(w=dcp_tensor(dcp_chunk() + dcp_chunk(numbers((2,))), size=numbers((8,)))),
                dcp_at() + dcp_place() + dcp_at(offset=numbers((2,))) + dcp_place(offset=len(PIECE)),
            )
        ),
        "overlap",
    ),
    "outside": (_dcp(dcp_metadata(mapping(w=dcp_tensor(dcp_chunk(numbers((4,))))))), "outside its shape"),
    "negative size": (_dcp(dcp_metadata(mapping(w=dcp_tensor(size=numbers((-4,)))))), "damaged shape"),
    "text as size": (_dcp(dcp_metadata(mapping(w=dcp_tensor(size=text("4"))))), "damaged shape"),
    "laughing size": (_dcp(dcp_metadata(mapping(w=dcp_tensor(size=laughs(60))))), "damaged shape"),
    "rank": (_dcp(dcp_metadata(mapping(w=dcp_tensor(size=numbers([1] * 65))))), "damaged shape"),
    "no element type": (_dcp(dcp_metadata(mapping(w=dcp_tensor(properties=b"N")))), "no element type"),
    "element type of the shell": (
        _dcp(
            dcp_metadata(
                mapping(w=dcp_tensor(properties=glob(_METADATA, "TensorProperties") + b")\x81" + tup(SHELL) + b"b"))
            )
        ),
        "no element type",
    ),
    "no place": (_dcp(dcp_metadata(places=b"")), "has no bytes for"),
    "two places": (
        _dcp(dcp_metadata(places=dcp_at() + dcp_place() + dcp_at() + dcp_place(offset=9999))),
        "twice at the same origin",
    ),
    "same bytes": (
        _dcp(dcp_metadata(places=dcp_at() + dcp_place() + dcp_at(text("v")) + dcp_place())),
        "in the same bytes",
    ),
    "metadata is a pointer": (_dcp(POINTER), "git lfs pull"),
    "piece is a pointer": (_dcp(piece=POINTER), "git lfs pull"),
    "file of traversal": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(text("../" + DATA)))), ""),
    "absolute file": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(text("/etc/passwd")))), ""),
    "file of nobody": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(text("\x1b[31m")))), ""),
    "file is a number": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(num(1)))), "invalid byte range"),
    "negative offset": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(offset=-1))), "invalid byte range"),
    "length of nothing": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(length=0))), "invalid byte range"),
    "length of 2**64": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(length=1 << 64))), "invalid byte range"),
    "length too large": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(length=1 << 40))), "incomplete"),
    "length too small": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(length=100))), "directory"),
    "offset": (_dcp(dcp_metadata(places=dcp_at() + dcp_place(offset=1, length=len(PIECE) - 1))), "torch.save archive"),
    "extension": (
        _dcp(dcp_metadata(places=dcp_at() + dcp_place(transform_descriptors=b"](" + text("\x1b[31mzstd") + b"e"))),
        "stream extension",
    ),
    "piece is another": (
        _dcp(dcp_metadata(places=dcp_at() + dcp_place(length=len(_SQUARE))), _SQUARE),
        "metadata declare",
    ),
    "piece is a dictionary": (_dcp(piece=checkpoint()), ""),
    "piece calls": (_dcp(piece=checkpoint(pickle=stop(call(SHELL, text("touch canary"))))), ""),
    "piece is cut": (_dcp(piece=PIECE[:-1]), "incomplete"),
    "piece is missing": ({".metadata": dcp_metadata()}, ""),
    "path of lists": (_dcp(dcp_metadata(planner=mapping(w=tup(b"]")))), "not consist of names"),
    "path of giants": (
        _dcp(dcp_metadata(planner=mapping(w=tup(b"\x8b\0\x40\0\0" + b"\x01" * 0x4000)))),
        "not consist of names",
    ),
    "item is a number": (_dcp(dcp_metadata(mapping(w=num(1)))), "of an unknown kind"),
    "name is a number": (_dcp(dcp_metadata(b"}K\x01" + dcp_tensor() + b"s")), "of an unknown kind"),
    "fields of thousands": (
        _dcp(
            dcp_metadata(
                b"}"
                + b"".join(text(f"f{number}") + b"Ns" for number in range(1000))
                + b"q\x050"
                + mapping(w=glob(_METADATA, "TensorStorageMetadata") + b")\x81h\x05b")
            )
        ),
        "",
    ),
}
_DCP_GOOD: dict[str, tuple[Contents, str]] = {
    "plain": (_dcp(), ""),
    "version": (_dcp(dcp_metadata(version=text("1.0.0"))), ""),
    "path": (_dcp(dcp_metadata(planner=mapping(w=tup(text("model"), text("w"))))), ""),
    "other files": (_dcp(notes=b"x"), ""),
}


def folder_cases() -> list[Case]:
    """Return the folders."""
    tables = (
        ("hf", _HF_BAD, REFUSED),
        ("good_hf", _HF_GOOD, OK),
        ("dcp", _DCP_BAD, REFUSED),
        ("good_dcp", _DCP_GOOD, OK),
    )
    return [
        *(
            Case(name=f"{group}_{name.replace(' ', '_')}", make=folder_of(contents), code=code, word=word)
            for group, table, code in tables
            for name, (contents, word) in table.items()
        ),
        Case(name="hf_fifo_as_shard", make=_with_fifo, word="not a regular file"),
        Case(name="hf_folder_as_shard", make=_with_folder, word="incomplete"),
        Case(name="hf_device_as_model", make=folder_of({"model.safetensors": "/dev/zero"}), word="not a regular file"),
        Case(name="dcp_link_out", make=folder_of({**_dcp(), DATA: "/proc/self/exe"}), word="torch.save archive"),
        Case(name="dcp_canary", make=_dcp_canary, word="of an unknown kind"),
    ]


def _with_fifo(path: Path) -> None:
    folder_of({_INDEX: _index(_MAP), _SECOND: _SHARDS[_SECOND]})(path)
    os.mkfifo(path / _FIRST)


def _with_folder(path: Path) -> None:
    folder_of({_INDEX: _index(_MAP), _SECOND: _SHARDS[_SECOND]})(path)
    (path / _FIRST).mkdir()


def _dcp_canary(path: Path) -> None:
    evil = call(SHELL, text(f"touch {path.parent / CANARY}"))
    folder_of(_dcp(stop(evil)))(path)
