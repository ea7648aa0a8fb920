"""Declarations of storages that contradict one another or their record, and unusual ones that do not.

The judge is ``torch.load(path, weights_only=True, mmap=False)``. Where it loads what is refused, the case says why.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.hostile.cases import OK, REFUSED, Case, file_name, of_bytes
from tests.hostile.folder_cases import DATA, dcp_at, dcp_metadata, dcp_place, folder_of
from tests.hostile.legacy_cases import legacy
from tests.hostile.opcodes import mapping, stop, storage, tensor, text, typed
from tests.hostile.zips import Record, checkpoint, pack

_FIRST = "torch gives the second tensor the type of the first declaration"
_UNREAD = "torch ignores the second declaration"
_TWO_IN_ONE = "the averages would not be views of the same bytes"
_DATA = struct.pack("<4f", 0.5, -1.5, 2.0, 8.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageCase:
    """A pickle; the file has the storages ``0`` and ``1`` of 16 bytes each."""

    root: bytes
    """The opcodes of its value."""
    word: str = ""
    """Of the message; empty if the pickle is good."""
    stricter: str = ""
    """Why it is refused although torch loads it."""

    def archive(self) -> bytes:
        """Return the file in torch's zip format, complete enough for torch."""
        return pack(
            Record(name="archive/data.pkl", data=stop(self.root)),
            Record(name="archive/byteorder", data=b"little"),
            Record(name="archive/data/0", data=_DATA),
            Record(name="archive/data/1", data=_DATA),
            Record(name="archive/version", data=b"3\n"),
        )


def _of(kind: str, elements: int, shown: int | None = None) -> bytes:
    """Push a tensor of all elements, or of the first ones, of storage 0 declared so."""
    shape = (elements if shown is None else shown,)
    return tensor(storage(kind=kind, elements=elements), shape=shape)


_INT = _of("IntStorage", 4)
_BYTES = _of("ByteStorage", 16)


def _beside(elements: int) -> bytes:
    """Push weights in storage 0, and the state of an optimizer in storage 1 with so many elements."""
    moments = mapping(exp_avg=tensor(storage("1", elements=elements), shape=(2,)))
    return mapping(model=mapping(w=tensor()), optimizer=mapping(state=b"}K\x00" + moments + b"s"))


_MOMENTS = mapping(state=b"}K\x00" + mapping(exp_avg=_INT) + b"s", param_groups=b"]")
STORAGES: dict[str, StorageCase] = {
    "two types": StorageCase(root=mapping(w=tensor(), v=_INT), word="in two ways", stricter=_FIRST),
    "two types the other way": StorageCase(root=mapping(w=_INT, v=tensor()), word="in two ways", stricter=_FIRST),
    "types of two sizes": StorageCase(root=mapping(w=tensor(), v=_of("HalfStorage", 8)), word="in two ways"),
    "halves of two kinds": StorageCase(
        root=mapping(w=_of("HalfStorage", 8), v=_of("BFloat16Storage", 8)), word="in two ways", stricter=_FIRST
    ),
    "complex and real": StorageCase(
        root=mapping(w=_of("ComplexFloatStorage", 2), v=_of("FloatStorage", 4, 2)), word="in two ways", stricter=_FIRST
    ),
    "bytes and booleans": StorageCase(
        root=mapping(w=_BYTES, v=_of("BoolStorage", 16)), word="in two ways", stricter=_FIRST
    ),
    "bytes and numbers": StorageCase(
        root=mapping(w=tensor(), v=_of("ByteStorage", 16, 4)), word="in two ways", stricter=_FIRST
    ),
    "codes and integers": StorageCase(
        root=mapping(w=_of("CharStorage", 16), v=_of("QInt8Storage", 16)), word="in two ways", stricter=_FIRST
    ),
    "unknown and known": StorageCase(root=mapping(w=tensor(), v=_of("EvilStorage", 4)), word="in two ways"),
    "two types in the optimizer": StorageCase(
        root=mapping(model=mapping(w=tensor()), optimizer=_MOMENTS), word="in two ways", stricter=_FIRST
    ),
    "two types in a list": StorageCase(
        root=mapping(model=mapping(w=tensor()), others=b"](" + _INT + b"e"), word="in two ways", stricter=_FIRST
    ),
    "two sizes": StorageCase(root=mapping(w=tensor(), v=_of("FloatStorage", 2)), word="in two ways", stricter=_UNREAD),
    "two sizes the other way": StorageCase(root=mapping(w=_of("FloatStorage", 2), v=tensor()), word="in two ways"),
    "larger than its record": StorageCase(root=mapping(w=_of("FloatStorage", 8, 4)), word='about storage "0"'),
    "tensor larger than its record": StorageCase(root=mapping(w=_of("FloatStorage", 8)), word="beyond its storage"),
    "smaller than its record": StorageCase(root=mapping(w=_of("FloatStorage", 3)), word='about storage "0"'),
    "tensor larger than declared": StorageCase(
        root=mapping(w=_of("FloatStorage", 3, 4)),
        word='"0": declared with 3 elements of "FloatStorage", stored with 16',
    ),
    "nothing is declared": StorageCase(root=mapping(w=_of("FloatStorage", 0)), word='about storage "0"'),
    "another type of another size": StorageCase(root=mapping(w=_of("DoubleStorage", 4, 2)), word='about storage "0"'),
    "far larger": StorageCase(root=mapping(w=_of("FloatStorage", 1 << 61, 4)), word='about storage "0"'),
    "size of 2**64": StorageCase(root=mapping(w=_of("FloatStorage", 1 << 64, 4)), word="damaged size"),
    "size of a thousand digits": StorageCase(root=mapping(w=_of("FloatStorage", 1 << 1000, 4)), word="damaged size"),
    "size below zero": StorageCase(root=mapping(w=_of("FloatStorage", -4, 4)), word="damaged size"),
    "larger in the optimizer": StorageCase(root=_beside(elements=5), word='about storage "1"'),
    "smaller in the optimizer": StorageCase(root=_beside(elements=3), word='about storage "1"'),
    "bytes and floats of eight bits": StorageCase(
        root=mapping(w=_BYTES, v=typed("float8_e4m3fn", 16)), word="in the same bytes", stricter=_TWO_IN_ONE
    ),
    "two types of eight bits": StorageCase(
        root=mapping(w=typed("float8_e4m3fn", 16), v=typed("float8_e5m2", 1, offset=7)),
        word="in the same bytes",
        stricter=_TWO_IN_ONE,
    ),
    "the last byte": StorageCase(
        root=mapping(w=typed("float8_e4m3fn", 9), v=typed("uint16", 4, offset=4)),
        word='"w" (float8_e4m3fn) and "v" (uint16)',
        stricter=_TWO_IN_ONE,
    ),
    "behind a short one": StorageCase(
        root=mapping(w=typed("uint16", 8), a=typed("uint16", 1), v=typed("float8_e4m3fn", 1, offset=15)),
        word='"w" (uint16) and "v" (float8_e4m3fn)',
        stricter=_TWO_IN_ONE,
    ),
    "between strides": StorageCase(
        root=mapping(w=typed("float8_e4m3fn", 2, strides=(15,)), v=typed("uint16", 2, offset=1)),
        word="in the same bytes",
        stricter=_TWO_IN_ONE,
    ),
    "views of a typed storage": StorageCase(
        root=mapping(w=tensor(), v=typed("int32", 4, storage_opcodes=storage())),
        word="in the same bytes",
        stricter=_TWO_IN_ONE,
    ),
    "tied": StorageCase(root=mapping(w=tensor(), v=tensor())),
    "tied in part": StorageCase(root=mapping(w=tensor(), v=tensor(shape=(2,), strides=(2,)))),
    "tied floats of eight bits": StorageCase(
        root=mapping(w=typed("float8_e4m3fn", 16), v=typed("float8_e4m3fn", 4, offset=2))
    ),
    "types side by side": StorageCase(root=mapping(w=typed("float8_e4m3fn", 8), v=typed("uint16", 4, offset=4))),
    "nothing of another type": StorageCase(root=mapping(w=typed("float8_e4m3fn", 16), v=typed("uint16", 0, offset=1))),
    "bytes and untyped bytes": StorageCase(
        root=mapping(w=_of("ByteStorage", 16, 4), v=typed("float8_e4m3fn", 8, offset=8))
    ),
    "two places": StorageCase(root=mapping(w=tensor(), v=tensor(storage(location="cuda:0")))),
    "the optimizer's own storage": StorageCase(root=_beside(elements=4)),
}
_LEGACY: dict[str, tuple[bytes, str]] = {
    "two types": (legacy(root=stop(mapping(w=tensor(), v=_INT))), "in two ways"),
    "two sizes": (legacy(root=stop(mapping(w=tensor(), v=_of("FloatStorage", 2)))), "in two ways"),
    "larger than stored": (legacy(root=stop(mapping(w=_of("FloatStorage", 5, 4)))), "stored with 16 bytes"),
    "smaller than stored": (legacy(root=stop(mapping(w=_of("FloatStorage", 3, 2)))), "stored with 16 bytes"),
    "two types in the optimizer": (
        legacy(root=stop(mapping(model=mapping(w=tensor()), optimizer=_MOMENTS))),
        "in two ways",
    ),
    "types in two pickles": (
        legacy(root=stop(mapping(w=tensor())), keys=stop(_INT + b"0](" + text("0") + b"e")),
        "in two ways",
    ),
}
_LIAR = STORAGES["two types"].archive()
_MODULE = StorageCase(root=mapping(module=STORAGES["two types"].root)).archive()
_LONG = STORAGES["smaller than its record"].archive()
_LONG_PIECE = StorageCase(root=tensor(storage(elements=5))).archive()
_FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "DeepSpeed": (
        {"mp_rank_00_model_states.pt": _MODULE},
        "in two ways",
    ),
    "Megatron": ({"mp_rank_00/model_optim_rng.pt": _LIAR}, "in two ways"),
    "pickled model": ({"pytorch_model.bin": _LONG, "config.json": b"{}"}, 'about storage "0"'),
    "pickled shards": (
        {"pytorch_model-00001-of-00002.bin": checkpoint(), "pytorch_model-00002-of-00002.bin": _LIAR},
        "in two ways",
    ),
    "DCP": (
        {".metadata": dcp_metadata(places=dcp_at() + dcp_place(length=len(_LONG_PIECE))), DATA: _LONG_PIECE},
        'about storage "0"',
    ),
}
"""Folders with such a file, and a word of the message."""


def storage_cases() -> list[Case]:
    """Return the files, in the zip format and in the one before torch 1.6, and the folders."""
    return [
        *(
            Case(
                name=file_name("storage" if case.word else "good_storage", name, ".pt"),
                make=lambda path, case=case: path.write_bytes(case.archive()),  # type: ignore[misc]
                code=REFUSED if case.word else OK,
                word=case.word,
            )
            for name, case in STORAGES.items()
        ),
        *of_bytes("storage_legacy", ".pt", _LEGACY),
        *(
            Case(name=file_name("storage", name, ""), make=folder_of(contents), word=word)
            for name, (contents, word) in _FOLDERS.items()
        ),
    ]
