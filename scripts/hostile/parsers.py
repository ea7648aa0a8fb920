"""What is fuzzed: each parser of the program with valid seeds, a mutation that knows its format, and one execution."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file

import ema_cli
from ema_cli.cli.app import app
from ema_cli.cli.config import from_table
from ema_cli.cli.config_files import read_file as read_config
from ema_cli.cli.configured import keys_of
from ema_cli.errors import VerificationFailed
from ema_cli.formats.dcp_metadata import parse_metadata
from ema_cli.formats.dcp_tree import choose
from ema_cli.formats.file import read_file
from ema_cli.formats.inert_pickle import loads
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.state_dict import find_state_dict
from ema_cli.formats.torch_objects import reduce, storage_from_persistent_id
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.source import ByteSource
from ema_cli.verify import verify
from hostile.cases import Case
from hostile.catalogue import catalogue
from hostile.legacy_cases import legacy
from hostile.mutate import JSON_WORDS, PICKLE_WORDS, TOML_WORDS, ZIP_WORDS, mutated
from hostile.opcodes import call, glob, mapping, num, stop, storage, tensor, text
from hostile.safetensors_cases import file
from hostile.zips import Ending, Record, checkpoint

Mutate = Callable[[bytes, Random], bytes]
_LARGEST_SEED = 20_000
_INDEX = "model.safetensors.index.json"


class Held(ByteSource):
    """Bytes in memory as a source."""

    name = "fuzzed"

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def identity(self) -> object:
        """Of this object alone."""
        return id(self)

    @property
    def version(self) -> int:
        """The bytes never change."""
        return 0

    def size(self) -> int:
        """Return the number of bytes."""
        return len(self._data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the buffer; a range that is not there is a bug of the parser."""
        if offset < 0 or offset + len(buffer) > len(self._data):
            raise AssertionError(f"read of {len(buffer)} bytes at {offset} of {len(self._data)}")
        buffer[:] = self._data[offset : offset + len(buffer)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """A parser and how it is fuzzed."""

    seeds: Sequence[bytes]
    mutate: Mutate
    run: Callable[[bytes], object]
    """Parses once; may raise ``EmaAvgError`` and ``PickleError``, and nothing else."""


def parsers(folder: Path) -> dict[str, Parser]:
    """Return them all.

    Args:
        folder: empty; where files are put that a parser wants to open by name.

    """
    cases = catalogue()
    return {
        "pickle": _pickle(),
        "zip": _zip(_seeds(cases, folder, "zip_", "good_zip", "lie_")),
        "legacy": _legacy(_seeds(cases, folder, "legacy_", "good_legacy")),
        "safetensors": _safetensors(_seeds(cases, folder, "safetensors_", "good_safetensors")),
        "index": _index(folder / "index"),
        "dcp": _dcp(cases, folder),
        "pieces": _pieces(cases, folder / "pieces"),
        "report": _report(folder / "report"),
        "config": _config(folder / "config"),
    }


def _seeds(cases: Sequence[Case], folder: Path, *groups: str) -> list[bytes]:
    """Return the small files of some groups of the catalogue."""
    found = []
    for case in cases:
        if case.name.startswith(groups):
            path = folder / "seed"
            case.make(path)
            if path.stat().st_size <= _LARGEST_SEED:
                found.append(path.read_bytes())
            path.unlink()
    return found


def _mutate(seeds: Sequence[bytes], words: Sequence[bytes]) -> Mutate:
    return lambda seed, random: mutated(seed, seeds, words, random)


def _values() -> list[bytes]:
    """Return pickles as trainers write them, and small ones."""
    tensors = mapping(w=tensor(), b=tensor(storage("1")), n=call(glob("torch._utils", "_rebuild_parameter"), tensor()))
    ordered = call(glob("collections", "OrderedDict")) + b"(" + text("w") + tensor() + b"u"
    module = call(glob("torch.nn", "Linear")) + mapping(_parameters=tensors, _buffers=b"}", _modules=b"}") + b"b"
    optimizer = b"}" + num(0) + mapping(exp_avg=tensor(), step=num(5)) + b"s"
    state = mapping(model=ordered, optimizer=mapping(state=optimizer), epoch=num(3), args=glob("x", "y") + b")R}b")
    return [stop(value) for value in (tensors, ordered, mapping(model=module), state, b"](" + tensor() + b"e", b"N")]


def _pickle() -> Parser:
    seeds = _values()

    def run(data: bytes) -> None:
        root, _ = loads(data, reduce=reduce, persistent_load=storage_from_persistent_id)
        find_state_dict(root)

    return Parser(seeds=seeds, mutate=_mutate(seeds, PICKLE_WORDS), run=run)


def _read(data: bytes) -> None:
    read_file(Held(data), None, LayoutPool())


def _zip(seeds: Sequence[bytes]) -> Parser:
    pickles = _values()

    def mutate(seed: bytes, random: Random) -> bytes:
        kind = random.randrange(3)
        if kind == 0:  # the pickle inside, with its checksum right
            return checkpoint(pickle=mutated(random.choice(pickles), pickles, PICKLE_WORDS, random))
        if kind == 1:  # fields of the headers
            return checkpoint(_random_record(random), ending=_random_ending(random))
        return mutated(seed, seeds, ZIP_WORDS, random)

    return Parser(seeds=seeds, mutate=mutate, run=_read)


def _random_record(random: Random) -> Record:
    extremes = (None, None, 0, 1, 15, 16, 17, 0xFFFF, 0xFFFFFFFF)
    names = ("archive/data/1", "archive/data/0", "archive/data.pkl", "x/data.pkl", "../x", "", "archive/byteorder")
    return Record(
        name=random.choice(names),
        data=bytes(random.choice((0, 16, 64))),
        method=random.choice((0, 0, 0, 8, 99)),
        flags=random.choice((0, 0, 1, 8, 0x800)),
        crc32=random.choice((None, 0, 1)),
        size=random.choice(extremes),
        packed=random.choice(extremes),
        header=random.choice(extremes),
        extra=random.choice((b"", b"\x01\0\x10\0" + bytes(16), b"\x01\0\x08\0" + b"\xff" * 8, b"\x01\0\xff\xff")),
        local_extra=bytes(random.choice((0, 0, 60))),
    )


def _random_ending(random: Random) -> Ending:
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
    pickles = _values()

    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(2):
            return mutated(seed, seeds, PICKLE_WORDS, random)
        part = random.choice(("root", "keys", "system", "version"))
        return legacy(**{part: mutated(random.choice(pickles), pickles, PICKLE_WORDS, random)})

    return Parser(seeds=seeds, mutate=mutate, run=_read)


def _safetensors(seeds: Sequence[bytes]) -> Parser:
    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(3) == 0:
            return mutated(seed, seeds, JSON_WORDS, random)
        length = int.from_bytes(seed[:8], "little")
        header, data = seed[8 : 8 + length], seed[8 + length :]
        return file(mutated(header, seeds, JSON_WORDS, random), data)

    return Parser(seeds=seeds, mutate=mutate, run=_read)


def _index(folder: Path) -> Parser:
    """The index of a folder with two shards; a mutation may be one of the trainer's state beside it."""
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for tensor_name, name in zip("ab", names, strict=True):
        save_file({tensor_name: np.zeros(4, np.float32)}, folder / name)
    seeds = [
        json.dumps({"metadata": {"total_size": 32}, "weight_map": dict(zip("ab", names, strict=True))}).encode(),
        json.dumps({"weight_map": {"a": names[0]}, "global_step": 5, "log_history": [{"loss": 1.5}]}).encode(),
    ]

    def run(data: bytes) -> None:
        for name in (_INDEX, "trainer_state.json"):
            (folder / name).write_bytes(data if name == _INDEX or data[:1] == b"{" else b"{}")
        open_checkpoint(folder, pool=LayoutPool()).index.close()

    return Parser(seeds=seeds, mutate=_mutate(seeds, JSON_WORDS), run=run)


def _dcp(cases: Sequence[Case], folder: Path) -> Parser:
    """The metadata of folders of torch.distributed.checkpoint."""
    seeds = []
    for number, case in enumerate(case for case in cases if case.name.startswith(("dcp_", "good_dcp"))):
        made = folder / f"dcp{number}"
        case.make(made)
        with contextlib.suppress(FileNotFoundError):
            seeds.append((made / ".metadata").read_bytes())
    seeds = [seed for seed in seeds if len(seed) < _LARGEST_SEED]
    return Parser(
        seeds=seeds,
        mutate=_mutate(seeds, PICKLE_WORDS),
        run=lambda data: choose(parse_metadata(data), None),
    )


def _pieces(cases: Sequence[Case], folder: Path) -> Parser:
    """The pieces that good metadata lead to."""
    next(case for case in cases if case.name == "good_dcp_plain").make(folder)
    path = folder / "__0_0.distcp"
    seeds = [path.read_bytes()]

    def mutate(seed: bytes, random: Random) -> bytes:
        raw = mutated(seed, seeds, (*ZIP_WORDS, *PICKLE_WORDS), random)
        return raw[: len(seed)].ljust(len(seed), b"\0") if random.randrange(2) else raw

    def run(data: bytes) -> None:
        path.write_bytes(data)
        open_checkpoint(folder, pool=LayoutPool()).index.close()

    return Parser(seeds=seeds, mutate=mutate, run=run)


def _report(folder: Path) -> Parser:
    """The report beside an average, as ``verify`` reads it."""
    folder.mkdir()
    for number in (1, 2):
        save_file({"w": np.full(4, number, np.float32)}, folder / f"c{number}.safetensors")
    output = folder / "ema.safetensors"
    ema_cli.average([str(folder / f"c{number}.safetensors") for number in (1, 2)], decay=0.5, output=str(output))
    path = next(path for path in folder.iterdir() if path.suffix == ".json")
    seeds = [path.read_bytes()]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        if not verify(output, samples=1).ok:
            raise VerificationFailed("it does not fit the average")

    return Parser(seeds=seeds, mutate=_mutate(seeds, JSON_WORDS), run=run)


def _config(folder: Path) -> Parser:
    """A configuration file, whose values are checked against the options of the command."""
    folder.mkdir()
    path = folder / "ema-avg.toml"
    from typer.main import get_command  # noqa: PLC0415 - typer is slow to import

    command = get_command(app).commands["plan"]  # type: ignore[attr-defined]
    keys = keys_of(command.params)
    seeds = [
        b'half-life = 500\nper = "step"\ndecay = [0.9, 0.99]\noutput = "ema.safetensors"\n',
        b'exclude = ["a.*", "b"]\non-missing = "last"\nverbose = true\nmax-shard-size = "5GB"\n',
    ]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        from_table(read_config(path).table, keys, path)

    return Parser(seeds=seeds, mutate=_mutate(seeds, TOML_WORDS), run=run)
