"""Pickles are read and never run: values are returned unchanged, calls as records, and hostile bytes as an error."""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import datetime as dt
import enum
import functools
import io
import math
import pathlib
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import EmaAvgError
from ema_cli.formats.inert_pickle.reader import OPERATIONS, read_pickle, unknown_opcode
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError, PickleTruncated
from ema_cli.formats.torch.objects import reduce
from ema_cli.formats.torch.storages import storage_from_persistent_id
from tests.helpers.makers import archive, expected, open_file, read_file
from tests.hostile.opcodes import SHELL, call, glob, mapping, num, stop, tensor, text, touch

PROTOCOLS = range(6)


def value_of(data: bytes) -> object:
    """Return the value of a pickle that fills ``data``."""
    value, end = read_pickle(data)
    assert end == len(data)
    return value


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return leaves, and lists, tuples and dictionaries of them up to four levels deep.

    ``st.recursive`` counts leaves beside the choices that Hypothesis records and replays; here there are only choices.
    """
    found = leaves
    for _ in range(4):
        several = st.lists(found, max_size=4)
        found = leaves | several | several.map(tuple) | st.dictionaries(keys, found, max_size=4)
    return found


unicode = st.characters(codec="utf-8")
plain = nested(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 100), 1 << 100)
    | st.floats(allow_nan=False)
    | st.text(unicode)
    | st.binary(),
    st.text(unicode, max_size=5) | st.integers(-9, 9),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(plain, st.sampled_from([3, 4, 5]))
def test_plain_values_come_out_as_they_are(value: object, protocol: int) -> None:
    """Numbers, text, bytes, lists, tuples and dictionaries of any nesting equal the pickled values."""
    assert value_of(pickle.dumps(value, protocol)) == value


without_bytes = nested(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=9),
    st.text(max_size=3),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(without_bytes.filter(lambda value: "\\ud" not in ascii(value)), st.sampled_from([0, 1, 2]))
def test_old_protocols_are_read(value: object, protocol: int) -> None:
    """The text protocol and the first binary ones give the same values."""
    assert value_of(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_positions_of_pickles_in_a_row(protocol: int) -> None:
    """Several pickles in a row are read one by one, and the bytes after them are not read."""
    data = b"".join(pickle.dumps(number, protocol) for number in range(3)) + b"tail"
    position, values = 0, []
    for _ in range(3):
        value, position = read_pickle(data, position)
        values.append(value)
    assert values == [0, 1, 2]
    assert data[position:] == b"tail"


class Colour(enum.Enum):
    """An enumeration, as in a configuration."""

    RED = 1


class Slotted:
    """An object with state, items and entries."""

    def __reduce__(self) -> tuple[object, ...]:
        """Use every part of the protocol."""
        return Slotted, (1,), {"state": 2}, iter([3]), iter([("key", 4)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records(protocol: int) -> None:
    """An object is a record of its class, arguments, state, entries and items."""
    made = value_of(pickle.dumps(Slotted(), protocol))
    assert isinstance(made, Inert)
    assert str(made.kind) == "tests.test_inert_pickle.Slotted"
    assert (made.args, made.state, made.entries, made.items) == ((1,), {"state": 2}, [3], {"key": 4})


def trainer_state() -> dict[str, object]:
    """Return objects that trainers store with the weights."""
    counts: collections.defaultdict[str, int] = collections.defaultdict(int)
    counts["seen"] = 5
    return {
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data")),
        "counts": counts,
        "queue": collections.deque([1, 2], maxlen=3),
        "counter": collections.Counter("aab"),
        "enum": Colour.RED,
        "partial": functools.partial(int, base=2),
        "time": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "range": range(3),
        "slice": slice(1, 2),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "ellipsis": ...,
        "numpy": np.float64(0.5),
        "array of numbers": np.arange(3),
        "random": np.random.default_rng(0).bit_generator.state,
        "python random": random.Random(0).getstate(),
        "class": Slotted,
        "function": math.sqrt,
        "infinity": math.inf,
        "step": 7,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_that_trainers_store_is_read(protocol: int) -> None:
    """No object that a trainer stores stops the reader, in any protocol, and plain values around it are right."""
    value = value_of(pickle.dumps(trainer_state(), protocol))
    assert isinstance(value, dict)
    assert list(value) == list(trainer_state())
    assert value["step"] == 7
    assert value["infinity"] == math.inf
    assert isinstance(value["counts"], Inert)
    assert value["counts"].items == {"seen": 5}
    assert isinstance(value["class"], Global)


def test_out_of_band_buffers_are_ignored() -> None:
    """A pickle with buffers outside it is read without them."""
    data = pickle.dumps(np.arange(3), 5, buffer_callback=lambda _: None)
    assert isinstance(value_of(data), Inert)


EVIL = {
    "reduce": SHELL + b"(" + text("touch CANARY") + b"tR",
    "newobj": SHELL + b"(" + text("touch CANARY") + b"t\x81",
    "newobj_ex": SHELL + b"(" + text("touch CANARY") + b"t}\x92",
    "inst": b"(" + text("touch CANARY") + b"ios\nsystem\n",
    "obj": b"(" + SHELL + text("touch CANARY") + b"o",
    "eval": glob("builtins", "eval") + b"(" + text("__import__('os').system('touch CANARY')") + b"tR",
    "eval in Python 2": glob("__builtin__", "eval") + b"(" + text("open('CANARY', 'w')") + b"tR",
    "exec": glob("builtins", "exec") + b"(" + text("open('CANARY', 'w')") + b"tR",
    "stack global": text("os") + text("system") + b"\x93(" + text("touch CANARY") + b"tR",
    "dotted": text("os") + text("path.os.system") + b"\x93(" + text("touch CANARY") + b"tR",
    "getattr": glob("builtins", "getattr")
    + b"("
    + glob("os", "path")
    + text("system")
    + b"tR("
    + text("CANARY")
    + b"tR",
    "resolve_name": glob("pkgutil", "resolve_name") + b"(" + text("os:system") + b"tR(" + text("touch CANARY") + b"tR",
    "torch name": glob("torch.os", "system") + b"(" + text("touch CANARY") + b"tR",
    "rebuild by state": glob("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + SHELL
    + SHELL
    + b"("
    + text("touch CANARY")
    + b"tNtR",
    "build": glob("tests.helpers.makers", "Tagged") + b")R}(" + text("__class__") + SHELL + b"ub",
    "build on a name": SHELL + b"}(" + text("__call__") + SHELL + b"ub",
    "build on a dictionary": b"}}(" + text("update") + SHELL + b"ub",
    "build on a list": b"]}(" + text("append") + SHELL + b"ub",
    "build on a number": b"K\x01}b",
    "setattr": glob("builtins", "setattr") + b"(" + glob("os", "path") + text("x") + num(1) + b"tR",
    "extension": b"\x82\x01(" + text("touch CANARY") + b"tR",
    "extension 2": b"\x83\x01\x01(" + text("touch CANARY") + b"tR",
    "extension 4": b"\x84\x01\x01\x01\x01(" + text("touch CANARY") + b"tR",
    "called record": SHELL + b"(" + text("touch CANARY") + b"tR)R",
}


@pytest.mark.parametrize("attack", sorted(EVIL))
def test_nothing_is_run(tmp_path: Path, attack: str) -> None:
    """A call of anything is recorded, by every opcode that calls, and the other weights are read."""
    canary = tmp_path / "canary"
    pickle_of = stop(mapping(model=mapping(w=tensor()), evil=lengthened(EVIL[attack], canary)))
    assert read_file(archive(tmp_path / "evil.pt", pickle_of, {"0": bytes(16)})) == expected({"w": torch.zeros(4)})
    assert not canary.exists()


def lengthened(opcodes: bytes, canary: Path) -> bytes:
    """Put the canary's path into every text that has its placeholder."""
    made, position = b"", 0
    while (start := opcodes.find(b"X", position)) >= 0:
        size = int.from_bytes(opcodes[start + 1 : start + 5], "little")
        content = opcodes[start + 5 : start + 5 + size].decode()
        made += opcodes[position:start] + text(content.replace("CANARY", str(canary)))
        position = start + 5 + size
    return made + opcodes[position:]


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """The standard library runs the calls that we record: this proves that the canary of these tests works."""
    canary = tmp_path / "canary"
    pickle.loads(stop(touch(canary)))
    assert canary.exists()


def laughs(levels: int, leaf: bytes, wrap: bytes = b"\x86") -> bytes:
    """Return a value that contains itself twice at every level: two to the ``levels`` leaves in a few bytes."""
    return leaf + b"".join(b"2" + wrap for _ in range(levels))


BOMBS = {
    "huge memo index": b"Nr\xff\xff\xff\xff.",
    "giant memo index": b"Np" + b"9" * 4000 + b"\n.",
    "colliding memo indices": b"".join(b"Np%d\n0" % (k * ((1 << 61) - 1)) for k in range(1, 60_000)) + b"N.",
    "giant bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "giant text": b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
    "giant bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "giant frame": b"\x95" + struct.pack("<Q", (1 << 64) - 1) + b"N.",
    "giant long": b"\x8b\xff\xff\xff\x7f.",
    "negative long": b"\x8b\xff\xff\xff\xff.",
    "nested lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "nested tuples": b")" + b"\x85" * 200_000 + b".",
    "nested marks": b"(" * 200_000 + b"l" * 200_000 + b".",
    "nested calls": b"cx\ny\n)R" + b"\x85R" * 100_000 + b".",
    "nested objects": b"cx\ny\n)R" + b"cx\ny\n)Rb" * 100_000 + b".",
    "laughing tuples": laughs(200, b")") + b".",
    "laughing lists": b"]" + b"".join(b"q%c0](h%ch%ce" % (k, k, k) for k in range(200)) + b".",
    "laughing key": b"}" + laughs(200, b")") + b"Ns.",
    "laughing set": b"\x8f(" + laughs(200, b")") + b"\x90.",
    "deep key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "wide key": b"}(" + b"N" * 100_000 + b"tNs.",
    "list as key": b"}]Ns.",
    "dictionary as key": b"}}Ns.",
    "number as key": b"}" + num((1 << 2000) - 1) + b"Ns.",
    "itself": b"}q\x00" + text("self") + b"h\x00s.",
    "list in itself": b"]q\x00h\x00a.",
    "record in itself": b"cx\ny\n)Rq\x00h\x00b.",
    "key of itself": b"}q\x00h\x00Ns.",
    "endless digits": b"I" + b"9" * 100_000 + b"\n.",
    "endless long": b"L" + b"9" * 100_000 + b"L\n.",
    "many marks": b"(" * 100_000 + b".",
    "nested rebuilds": b"".join(
        [
            glob("torch._tensor", "_rebuild_from_type_v2"),
            b"q\x00)",
            b"q\x010" + b"h\x00Nh\x01\x87q\x010" * 2000,
            b"h\x00h\x01R.",
        ]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_bombs_are_small(tmp_path: Path, bomb: str) -> None:
    """A small pickle takes little time and memory, whatever it declares; it gives a value or ``PickleError``."""
    data = b"\x80\x05" + BOMBS[bomb]
    tracemalloc.start()
    began = time.process_time()
    try:
        with contextlib.suppress(PickleError):
            read_pickle(data, reduce=reduce, persistent_load=storage_from_persistent_id)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 100 * len(data) + (1 << 20)
    with pytest.raises(EmaAvgError):
        open_file(archive(tmp_path / "bomb.pt", data))


REFUSED = {
    "nothing": b"",
    "no stop": b"N",
    "empty stack": b".",
    "unknown opcode": b"\xff.",
    "protocol 6": b"\x80\x06N.",
    "negative memo": b"g-1\n.",
    "memo": b"h\x07.",
    "append to a number": b"K\x01Na.",
    "set in a list": b"]NNs.",
    "odd pairs": b"}(Nu.",
    "odd dictionary": b"(Nd.",
    "name of a number": b"K\x01K\x02\x93.",
    "call without a tuple": b"cx\ny\nNR.",
    "object of nothing": b"(o.",
    "text": b"S'x\n.",
    "no quotes": b"Sx\n.",
    "integer": b"Ix\n.",
    "float": b"Fx\n.",
    "persistent": b"NQ.",
    "persistent line": b"P1\n.",
    "pop": b"0.",
    "tuple": b"\x87.",
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_nonsense_is_refused(case: str) -> None:
    """A meaningless pickle is a ``PickleError`` with a message of a few printable words."""
    with pytest.raises(PickleError) as raised:
        read_pickle(REFUSED[case])
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncation_is_distinguished_from_damage(protocol: int) -> None:
    """A pickle that ends early anywhere is ``PickleTruncated``: a reader with more bytes can continue."""
    value = {"a": [1, 300, 70_000, 1 << 40, 0.5, "text" * 100, b"bytes", (1, 2, 3), True, None], "b": Colour.RED}
    data = pickle.dumps(value, protocol)
    for length in range(len(data)):
        with pytest.raises(PickleTruncated):
            read_pickle(data[:length])


def test_escapes_of_python_2_are_read() -> None:
    """Byte strings of the text protocol are decoded, with the escapes of Python 2, known and unknown."""
    assert value_of(b"S'a\\n\\x41\\d'\n.") == "a\nA\\d"
    assert value_of(b'S"\xc3\xbc"\n.') == "ü"
    assert value_of(b"S'\\xff'\n.") == "\\xff"
    assert value_of(b"V\\u00fc\n.") == "ü"
    assert value_of(b"I01\n.") is True
    assert value_of(b"I00\n.") is False


def test_only_scalars_and_stand_ins_are_keys() -> None:
    """Keys of dictionaries are scalars, names and records; a tuple becomes a record, so it is never hashed."""
    keys = [None, True, 5, -1, 0.5, "a", b"b"]
    assert value_of(pickle.dumps(dict.fromkeys(keys, 0), 4)) == dict.fromkeys(keys, 0)
    assert isinstance(value_of(b"}cx\ny\nNs."), dict)
    made = value_of(pickle.dumps({(1, "x", (2.0, None)): 0}, 4))
    assert isinstance(made, dict)
    (key,) = made
    assert isinstance(key, Inert)
    assert key.args == (1, "x", (2.0, None))


@pytest.mark.slow
@settings(deadline=None, max_examples=1500)
@given(st.binary(max_size=60))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    """Random bytes are a value or ``PickleError``, never another exception."""
    try:
        read_pickle(data, reduce=reduce, persistent_load=storage_from_persistent_id)
    except PickleError:
        return


opcodes = st.lists(
    st.sampled_from(
        [bytes([code]) for code in b"(012JKNQRabcdehijlopqrstu}])G."] + [bytes([c]) for c in range(0x80, 0x99)]
    )
    | st.sampled_from(
        [b"K\x01", b"h\x00", b"q\x00", text("a"), glob("torch._utils", "_rebuild_tensor_v2"), SHELL, num(3)]
    )
    | st.sampled_from(
        [b"(lp0\n", tensor(), call(glob("torch", "Size"), b")"), call(glob("collections", "OrderedDict"))]
    ),
    max_size=25,
).map(b"".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=1500)
@given(opcodes)
def test_random_programs_are_read_or_refused(program: bytes) -> None:
    """Random sequences of opcodes are a value or ``PickleError``, never another exception."""
    try:
        read_pickle(program + b".", reduce=reduce, persistent_load=storage_from_persistent_id)
    except PickleError:
        return


def valid_pickles() -> Iterator[bytes]:
    """Yield pickles of a training state in every protocol."""
    state = trainer_state()
    yield from (pickle.dumps(state, protocol) for protocol in PROTOCOLS)


VALID = tuple(valid_pickles())


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=5))
def test_mutated_pickles_are_read_or_refused(data: bytes, changes: list[tuple[int, int]]) -> None:
    """A valid pickle with random bytes in it is a value or ``PickleError``, never another exception."""
    raw = bytearray(data)
    for place, value in changes:
        raw[place % len(raw)] = value
    try:
        read_pickle(bytes(raw), reduce=reduce, persistent_load=storage_from_persistent_id)
    except PickleError:
        return


def test_every_opcode_of_the_standard_library_is_known() -> None:
    """No opcode that ``pickletools`` documents is unknown to the reader."""
    unknown = [opcode.name for opcode in pickletools.opcodes if OPERATIONS[ord(opcode.code)] is unknown_opcode]
    assert unknown == ["STOP"]


def test_nothing_of_the_standard_library_unpickles() -> None:
    """The package uses ``pickle`` for the names of the opcodes alone: every use of it is one of those bytes."""
    used = set()
    for path in Path(ema_cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module in ("pickle", "_pickle")), path
            if isinstance(node, ast.Import):
                assert not any(name.name == "pickle" and name.asname for name in node.names), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
                used.add(node.attr)
    assert used <= {opcode for opcode, code in vars(pickle).items() if isinstance(code, bytes) and len(code) == 1}
    assert "REDUCE" in used


def test_reading_needs_no_file_position() -> None:
    """The pickles of a stream are the pickles of its bytes."""
    buffer = io.BytesIO()
    pickle.dump([1], buffer)
    assert read_pickle(buffer.getvalue()) == ([1], buffer.tell())
