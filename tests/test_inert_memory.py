"""The memory of a pickle is counted: never less than it takes, and little more than real checkpoints need."""

from __future__ import annotations

import gc
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from ema_cli.formats.inert_pickle.costs import MOST_BYTES
from ema_cli.formats.inert_pickle.machine import Machine
from ema_cli.formats.inert_pickle.reader import read_pickle, run
from ema_cli.formats.inert_pickle.values import PickleError, TooLong
from ema_cli.formats.torch.objects import reduce
from ema_cli.formats.torch.storages import storage_from_persistent_id
from tests.helpers.makers import save
from tests.hostile.opcodes import call, glob, num, stop, storage, tensor, text

pytestmark = pytest.mark.slow
_OBJECT = glob("x", "y") + b"q\x000"
_ORDERED = glob("collections", "OrderedDict") + b"q\x000"
FILLED: dict[str, tuple[bytes, bytes]] = {
    "lists": (b"", b"]"),
    "dictionaries": (b"", b"}"),
    "nothing": (b"", b"N"),
    "duplicates": (b"N", b"2"),
    "memos": (b"N", b"\x94"),
    "sets": (b"", b"\x8f"),
    "frozen sets": (b"", b"(\x91"),
    "small integers": (b"", b"K\x01"),
    "integers": (b"", b"M\xff\xff"),
    "long integers": (b"", b"\x8a\xff" + b"\x01" * 255),
    "floats": (b"", b"G" + bytes(8)),
    "bytes": (b"", b"C\x02ab"),
    "texts": (b"", b"\x8c\x02ab"),
    "wide texts": (b"", text("a" * 200 + "\U0001f600")),
    "undecodable texts": (b"", b"\x8c\x20" + b"\xff" * 32),
    "text lines": (b"", b"Va\\U0001f600aaaaaaaaaaaaaaaa\n"),
    "calls": (_OBJECT, b"h\x00)R"),
    "objects": (_OBJECT, b"h\x00)\x81"),
    "marked objects": (_OBJECT, b"(h\x00o"),
    "tuples of one": (b"", b"N\x85"),
    "tuples of three": (b"", b"NNN\x87"),
    "marked tuples": (b"", b"(NNNNt"),
    "marked lists": (b"", b"(NNNNl"),
    "appended lists": (b"", b"](NNNNNNNNe"),
    "filled dictionaries": (text("k") + b"q\x00", b"}h\x00Ns"),
    "keys that are tuples": (b"", b"}NN\x86Ns"),
    "extensions": (b"", b"\x82\x01"),
    "mappings": (_ORDERED, b"h\x00)R"),
    "mappings whose arguments are put": (_ORDERED, b"h\x00(NNNNNNtq\x01R"),
    "mappings whose arguments are kept": (_ORDERED, b"h\x00(NNNNNNNNNNNNNNNNNNt2R"),
    "mappings whose arguments are put twice": (_ORDERED, b"h\x00(NNNNNNtq\x01q\x02R"),
    "storages": (b"", storage()),
    "tensors": (b"", tensor()),
}


def machine(data: bytes) -> Machine:
    """Return the machine that would read a pickle of a torch checkpoint, with unlimited memory."""
    return Machine(data, 0, reduce, storage_from_persistent_id, 1 << 60)


@pytest.mark.parametrize("name", sorted(FILLED))
def test_no_opcode_takes_more_than_is_counted(name: str) -> None:
    """Python allocates for 100,000 of the same opcodes, or 300 kB, at most the counted memory plus a tenth."""
    head, unit = FILLED[name]
    made = machine(head + unit * min(100_000, 300_000 // len(unit)) + b".")
    gc.collect()
    tracemalloc.start()
    try:
        value = run(made)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del value
    assert taken < 1.1 * made.spent + 100_000


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hundred_thousand_tensors_with_the_state_of_adam_fit(tmp_path: Path, *, legacy: bool) -> None:
    """A real checkpoint of a hundredth of that size is counted as less than a hundredth of the limit."""
    count = 1000
    model = {f"model.layers.{number}.self_attn.weight": torch.zeros(1) for number in range(count)}
    moments = ("step", "exp_avg", "exp_avg_sq")
    state = {number: {name: torch.zeros(1) for name in moments} for number in range(count)}
    path = save(tmp_path / "adam.pt", {"model": model, "optimizer": {"state": state}}, legacy=legacy)
    spent = 0
    for pickle in _pickles(path, legacy=legacy):
        made = machine(pickle)
        run(made)
        spent = max(spent, made.spent)
    assert 100 * spent < MOST_BYTES


def _pickles(path: Path, *, legacy: bool) -> list[bytes]:
    if not legacy:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    data, position, found = path.read_bytes(), 0, []
    for _ in range(4):
        _, end = read_pickle(data, position, reduce=reduce, persistent_load=storage_from_persistent_id)
        found.append(data[position:end])
        position = end
    return found


@pytest.mark.parametrize("unit", [b"]", b"N", b"\x8f", b"\x94"])
def test_more_than_the_limit_is_refused(unit: bytes) -> None:
    """A pickle with values larger than the limit is refused, and the message states the limit."""
    with pytest.raises(PickleError, match="would take more than 1,000,000 bytes"):
        read_pickle(b"N" + unit * 200_000 + b".", most_bytes=1_000_000)


def test_long_texts_and_bytes_are_not_kept() -> None:
    """Text that is too long for a name is skipped; it cannot be a key."""
    long = b"x" * ((1 << 20) + 1)
    head = struct.pack("<I", len(long))
    for opcodes in (b"X" + head + long, b"B" + head + long, b"V" + long + b"\n", b"S'" + long + b"'\n"):
        assert read_pickle(opcodes + b".")[0] == TooLong(len(long))
    with pytest.raises(PickleError, match="cannot be a key"):
        read_pickle(b"}X" + head + long + b"Ns.")


@pytest.mark.parametrize("again", [b"q\x07", b"r\x07\x00\x00\x00"])
def test_arguments_are_forgotten_only_where_nothing_else_holds_them(again: bytes) -> None:
    """A tuple that made a tensor is dropped from the memo; another memo of it, and that of an object, is kept."""
    pid = storage()[:-1]
    with pytest.raises(PickleError, match="arguments of a call"):
        read_pickle(pid + b"q\x00Q0h\x00.", persistent_load=storage_from_persistent_id)
    value, _ = read_pickle(pid + again + b"q\x00Q0h\x07.", persistent_load=storage_from_persistent_id)
    assert isinstance(value, tuple)
    kept, _ = read_pickle(call(glob("x", "y"))[:-1] + b"q\x00R0h\x00.")
    assert kept == ()
    assert read_pickle(stop(num(1)))[0] == 1


def test_what_is_deep_is_freed_without_a_crash() -> None:
    """A million nested values are made, and freed, without a stack overflow."""
    for data in (b"]" * 1_000_000 + b"a" * 999_999 + b".", b")" + b"\x85" * 1_000_000 + b"."):
        value, _ = read_pickle(data)
        del value
    with pytest.raises(PickleError, match="nests more than"):
        read_pickle(b"(" * 20_000)
