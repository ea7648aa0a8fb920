"""The parsers of single files: pickles, zip archives, the format before torch 1.6, safetensors, foreign files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from ema_cli.formats.file import read_file
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.state_dict.find_weights import find_state_dict
from ema_cli.formats.state_dict.prefixes import strip_prefixes
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.formats.torch.objects import reduce
from ema_cli.storage.extents import LayoutPool
from tests.hostile.cases import Case
from tests.hostile.declarations import check_places, declarations
from tests.hostile.in_memory import MemorySource
from tests.hostile.legacy_cases import legacy
from tests.hostile.mutate import FOREIGN_WORDS, ZIP_WORDS, mutated
from tests.hostile.opcodes import call, glob, mapping, num, stop, storage, tensor, text, tup, typed
from tests.hostile.parser import Parser
from tests.hostile.safetensors_cases import file
from tests.hostile.tokens import JSON, PICKLE, varied
from tests.hostile.zips import Ending, Record, checkpoint, pack

_LARGEST_SEED = 20_000
_EXTREMES = (0, 1, 15, 16, 17, 0xFFFF, 0xFFFFFFFF)


def file_parsers(cases: Sequence[Case], folder: Path) -> dict[str, Parser]:
    """Return the parsers of files; ``folder`` is for temporary seed files."""
    return {
        "pickle": _pickle(pickles()),
        "zip": _zip(_seeds(cases, folder, "zip_", "good_zip", "lie_", "storage_", "good_storage_")),
        "legacy": _legacy(_seeds(cases, folder, "legacy_", "good_legacy", "storage_legacy")),
        "safetensors": _safetensors(_seeds(cases, folder, "safetensors_", "good_safetensors")),
        "foreign": _foreign([*_seeds(cases, folder, "foreign_"), checkpoint()]),
    }


def _seeds(cases: Sequence[Case], folder: Path, *groups: str) -> list[bytes]:
    """Return the small files of some groups of the catalogue."""
    found = []
    for case in cases:
        if case.name.startswith(groups) and "MB" not in case.name:
            path = folder / "seed"
            case.make(path)
            if path.is_dir():
                shutil.rmtree(path)
                continue
            if path.stat().st_size <= _LARGEST_SEED:
                found.append(path.read_bytes())
            path.unlink()
    return found


def pickles() -> list[bytes]:
    """Return pickles as trainers write them, and small ones; their storages are called 0 and 1."""
    first, second = tensor(), tensor(storage("1"))
    tensors = mapping(w=first, b=second, n=call(glob("torch._utils", "_rebuild_parameter"), first))
    ordered = call(glob("collections", "OrderedDict")) + b"(" + text("w") + first + b"u"
    module = call(glob("torch.nn", "Linear")) + mapping(_parameters=tensors, _buffers=b"}", _modules=b"}") + b"b"
    optimizer = b"}" + num(0) + mapping(exp_avg=first, step=num(5)) + b"s"
    state = mapping(model=ordered, optimizer=mapping(state=optimizer), epoch=num(3), args=glob("x", "y") + b")R}b")
    view = (storage(kind="UntypedStorage", elements=16), num(0), tup(num(4)), tup(num(1)), b"\x89", b"}")
    third = call(glob("torch._utils", "_rebuild_tensor_v3"), *view, glob("torch", "float32"), b"}")
    wrapped = call(
        glob("torch._tensor", "_rebuild_from_type_v2"),
        glob("torch._utils", "_rebuild_tensor_v2"),
        glob("x", "Y"),
        tup(storage(), num(0), tup(num(4)), tup(num(1)), b"\x89", b"}"),
        b"}",
    )
    averaged = mapping(model=mapping(**{"module.w": first}), ema=mapping(w=second), global_step=num(7))
    count = tensor(storage(kind="LongStorage", elements=2), shape=(), strides=())
    spec = (
        call(glob("torch.distributed.tensor._dtensor_spec", "DTensorSpec")) + b"N" + mapping(placements=b")") + b"\x86b"
    )
    sharded = call(
        glob("torch._tensor", "_rebuild_from_type_v2"),
        *(glob("torch._utils", "_rebuild_wrapper_subclass"), glob("torch.distributed.tensor", "DTensor")),
        tup(glob("torch.distributed.tensor", "DTensor"), glob("torch", "float32"), tup(num(4))),
        mapping(_local_tensor=first, _spec=spec),
    )
    fairseq = mapping(model=ordered, optimizer_history=b"](" + mapping(num_updates=num(3)) + b"e", step=count)
    scalar = call(
        glob("numpy.core.multiarray", "scalar"),
        call(glob("numpy", "dtype"), text("i8"), b"\x89", b"\x88") + tup(num(3), text("<")) + b"b",
        b"C\x08" + bytes(8),
    )
    numbered = b"}(" + num(0) + mapping(w=first) + text("0") + second + b"N" + first + tup(num(1)) + second + b"u"
    layers = mapping(model=mapping(w=first, layers=numbered), optimizer=mapping(state=numbered), experts=numbered)
    untyped = mapping(w=typed("float8_e4m3fn", 8), v=typed("uint16", 4, offset=4), u=typed("float8_e4m3fn", 4))
    return [
        *map(stop, (tensors, ordered, mapping(model=module), state, b"](" + first + b"e", b"N", averaged)),
        *map(stop, (layers, numbered, untyped)),
        *map(
            stop, (mapping(w=third, v=wrapped), mapping(state_dict=tensors, step=scalar), mapping(w=sharded), fairseq)
        ),
    ]


def read(data: bytes) -> None:
    """Read a file, as ``open_checkpoint`` does, and check what is accepted."""
    structure = read_file(MemorySource(data), (), LayoutPool())
    strip_prefixes([layout.name for layout in structure.layouts], None)
    check_places(structure, len(data))


def _foreign(seeds: Sequence[bytes]) -> Parser:
    return Parser(seeds=seeds, mutate=lambda seed, random: mutated(seed, seeds, FOREIGN_WORDS, random), run=read)


def _pickle(seeds: Sequence[bytes]) -> Parser:
    def mutate(seed: bytes, random: Random) -> bytes:
        return varied(declarations(random) if random.randrange(4) == 0 else seed, seeds, PICKLE, random)

    return Parser(seeds=seeds, mutate=mutate, run=_run_pickle)


def _run_pickle(data: bytes) -> None:
    root, _ = read_pickle(data, reduce=reduce, persistent_load=DeclaredStorages().load)
    find_state_dict(root)


def _zip(seeds: Sequence[bytes]) -> Parser:
    values = pickles()

    def mutate(seed: bytes, random: Random) -> bytes:
        return mutated(seed, seeds, ZIP_WORDS, random) if random.randrange(3) == 0 else archive(random, values)

    return Parser(seeds=seeds, mutate=mutate, run=read)


def archive(random: Random, values: Sequence[bytes]) -> bytes:
    """Return an archive around a pickle, perhaps a mutated one, with at most two false fields in its headers.

    The checksums are right unless they are the false field, so that the mutations are read.
    """
    pickle = declarations(random) if random.randrange(4) == 0 else random.choice(values)
    if random.randrange(2):
        pickle = varied(pickle, values, PICKLE, random)
    records = [
        Record(name="archive/data.pkl", data=pickle),
        Record(name="archive/byteorder", data=b"little"),
        Record(name="archive/data/0", data=bytes(16)),
        Record(name="archive/data/1", data=bytes(64)),
    ]
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        place = random.randrange(len(records))
        records[place] = replace(records[place], **_lie(random))
    if random.randrange(8) == 0:
        records.insert(random.randrange(4), random.choice(records))
    return pack(*records, ending=_ending(random) if random.randrange(6) == 0 else None)


def _lie(random: Random) -> dict[str, Any]:
    """Return a field of a record and its value."""
    names = ("archive/data/1", "archive/data/0", "archive/data.pkl", "x/data.pkl", "../x", "", "archive/constants.pkl")
    extra = (b"\x01\0\x10\0" + bytes(16), b"\x01\0\x08\0" + b"\xff" * 8, b"\x01\0\xff\xff", b"\x75\x70\x02\0ab")
    field, values = random.choice(
        (
            ("name", names),
            ("local_name", names),
            ("data", (b"", b"big", bytes(15), bytes(100))),
            ("method", (8, 99)),
            ("local_method", (8, 99)),
            ("flags", (1, 8, 0x800)),
            ("crc32", (0, 1)),
            ("size", _EXTREMES),
            ("packed", _EXTREMES),
            ("header", _EXTREMES),
            ("disk", (1,)),
            ("extra", extra),
            ("local_extra", (bytes(60), b"FB" + bytes(20))),
            ("raw_name", (b"archive/data/\xff", b"\x1b[31m/data.pkl")),
        )
    )
    return {field: random.choice(values)}


def _ending(random: Random) -> Ending:
    numbers = (None, None, None, 0, 1, 2, 3, 0xFFFF)
    return Ending(
        comment=random.choice((b"", b"PK\x05\x06", bytes(30))),
        count=random.choice(numbers),
        count_here=random.choice(numbers),
        size=random.choice((*numbers, 0xFFFFFFFF)),
        begin=random.choice((*numbers, 0xFFFFFFFF)),
        comment_size=random.choice((None, None, None, 0, 1)),
    )


def _legacy(seeds: Sequence[bytes]) -> Parser:
    values = pickles()

    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(3) == 0:
            return varied(seed, seeds, PICKLE, random)
        part = random.choice(("root", "root", "root", "keys", "system", "version"))
        keys = stop(b"](" + text("0") + text("1") + b"e")
        storages = b"\x04" + bytes(7) + bytes(16)
        root = declarations(random) if random.randrange(4) == 0 else random.choice(values)
        parts = {"root": root, "keys": keys, "data": storages * 2}
        if part == "root" and random.randrange(2):
            return legacy(**parts)
        parts[part] = varied(parts.get(part, values[0]), values, PICKLE, random)
        return legacy(**parts)

    return Parser(seeds=seeds, mutate=mutate, run=read)


def _safetensors(seeds: Sequence[bytes]) -> Parser:
    headers = [seed[8 : 8 + int.from_bytes(seed[:8], "little")] for seed in seeds]

    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(8) == 0:
            return mutated(seed, seeds, JSON.words, random)
        length = int.from_bytes(seed[:8], "little")
        header, data = seed[8 : 8 + length], seed[8 + length :]
        return file(varied(header, headers, JSON, random), data)

    return Parser(seeds=seeds, mutate=mutate, run=read)
