"""Damage in the data of a checkpoint is found while it is folded, and equal checkpoints have equal digests."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputRefused
from ema_cli.report.model import Report
from ema_cli.storage.checksums import Assembly, Record, RecordTable
from tests.helpers.makers import save, tensor_bytes

BIG = torch.arange(3000, dtype=torch.float32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty folder for checkpoints."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def flip(path: Path, needle: bytes) -> None:
    """Flip one bit of the first occurrence of some bytes."""
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(bytes(data))


def average(folder: Path, **options: Any) -> Report:
    """Average the files of a folder."""
    return ema_cli.average(folder, decay=0.5, output=folder.parent / "ema.safetensors", force=True, **options)


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "whole": BIG.clone,
    "a view of a part": lambda: BIG.clone()[1000:2000],
    "transposed": lambda: BIG.clone().view(50, 60).t(),
    "stretched": lambda: BIG.clone()[::30],
    "copied": lambda: torch.arange(3000, dtype=torch.int32),
    "one number": lambda: torch.tensor(1234.5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_is_found(kind: str, place: int, run: Path) -> None:
    """Any flipped bit of a record that is read is an error that names the file, whatever part of it the tensor uses."""
    for step in (1, 2):
        tensor = KINDS[kind]()
        save(run / f"c_{step}.pt", {"w": tensor, "other": torch.zeros(5)})
    average(run)
    damaged = run / "c_2.pt"
    storage = bytes(tensor.untyped_storage())
    data = damaged.read_bytes()
    at = data.index(storage) + place % len(storage)
    damaged.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    before = (run.parent / "ema.safetensors").read_bytes()
    with pytest.raises(InputRefused, match=r"c_2\.pt\" is damaged: bytes .* have the checksum"):
        average(run)
    assert (run.parent / "ema.safetensors").read_bytes() == before


def test_files_without_checksums_are_read(run: Path) -> None:
    """Torch can be set to store none; then there is nothing to compare with."""
    torch.serialization.set_crc32_options(False)
    try:
        for step in (1, 2):
            save(run / f"c_{step}.pt", {"w": BIG})
    finally:
        torch.serialization.set_crc32_options(True)
    flip(run / "c_1.pt", tensor_bytes(BIG))
    average(run)


def test_records_that_are_not_used_are_not_read(run: Path) -> None:
    """Damage in the state of an optimizer does not matter to an average."""
    for step in (1, 2):
        save(run / f"c_{step}.pt", {"model": {"w": BIG}, "optimizer": {"m": BIG + 1}})
    flip(run / "c_1.pt", tensor_bytes(BIG + 1))
    average(run)


def oracle(tensors: dict[str, torch.Tensor]) -> str:
    """Compute the digest of a checkpoint from whole tensors."""
    total = 0
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
        text = f"{name}\0{dtype}\0{tuple(tensor.shape)}\0{zlib.crc32(tensor_bytes(tensor)):08x}"
        total += int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return f"{total % 2**128:032x}"


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 4, "max_memory": 2_000_000}])
def test_the_digest_of_contents_depends_on_nothing_else(options: dict[str, Any], run: Path) -> None:
    """The digest does not depend on format, order, strides, threads or blocks; it excludes copied tensors."""
    w, b = torch.randn(300, 500), torch.randn(7).to(torch.bfloat16)
    save(run / "c_1.pt", {"b": b, "w": w.t().contiguous().t(), "n": torch.tensor(3)})
    save_file({"w": w, "b": b, "n": torch.tensor(4)}, run / "c_2.safetensors")
    save(run / "c_3.pt", {"w": w + 1, "b": b, "n": torch.tensor(4)})
    contents = [known.content for known in average(run, **options).inputs]
    assert contents == [oracle({"w": w, "b": b})] * 2 + [oracle({"w": w + 1, "b": b})]


@given(st.data())
def test_pieces_in_any_order_give_the_checksum_of_the_record(data: st.DataObject) -> None:
    """In whatever pieces and order a record is read, its checksum is returned once it is whole, and only once."""
    content = data.draw(st.binary(min_size=1, max_size=40))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(content) - 1)))) & set(range(1, len(content))))
    pieces = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
    record = Record(offset=100, size=len(content), crc32=0)
    assembly = Assembly()
    found = [
        assembly.add(1, record, 100 + begin, end - begin, zlib.crc32(content[begin:end]))
        for begin, end in data.draw(st.permutations(pieces))
    ]
    assert found == [None] * (len(pieces) - 1) + [zlib.crc32(content)]
    assert assembly.unfinished() == set()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=20), st.binary(min_size=20, max_size=20))
def test_overlapping_pieces_give_no_wrong_checksum(ranges: list[tuple[int, int]], content: bytes) -> None:
    """Pieces that overlap give the right checksum or none."""
    record = Record(offset=0, size=len(content), crc32=0)
    assembly = Assembly()
    for begin, length in [*ranges, (0, 20)]:
        found = assembly.add(1, record, begin, length, zlib.crc32(content[begin : begin + length]))
        assert found in (None, zlib.crc32(content))


@given(st.lists(st.sampled_from([(b, e) for b in range(5) for e in range(b + 1, 6)]), max_size=12))
def test_views_of_a_storage_in_any_order_give_no_wrong_checksum(ranges: list[tuple[int, int]]) -> None:
    """Threads read two views of one storage at a time: pieces that begin or end together do not replace each other."""
    content = b"01234"
    record = Record(offset=0, size=len(content), crc32=0)
    assembly = Assembly()
    for begin, end in ranges:
        found = assembly.add(1, record, begin, end - begin, zlib.crc32(content[begin:end]))
        assert found in (None, zlib.crc32(content))


def test_a_table_finds_the_record_of_a_byte() -> None:
    """Bytes between records belong to none."""
    records = [Record(offset=50, size=10, crc32=7), Record(offset=10, size=5, crc32=1 << 31)]
    table = RecordTable(records)
    assert [table.find(offset) for offset in (9, 10, 14, 15, 50, 59, 60)] == [
        None,
        records[1],
        records[1],
        None,
        records[0],
        records[0],
        None,
    ]


def test_copies_are_reported(run: Path) -> None:
    """Two checkpoints with the same weights are named in a warning, in any format; others are not.

    The sample before the fold finds these, the fold finds all.
    """
    save(run / "c_1.pt", {"w": BIG, "n": torch.tensor(1)})
    save_file({"w": BIG, "n": torch.tensor(2)}, run / "c_2.safetensors")
    save(run / "c_3.pt", {"w": BIG + 1, "n": torch.tensor(2)})
    codes = [warning.code for warning in average(run).warnings]
    assert "evidence-copies" in codes
    assert "same-weights" not in codes
    warnings = [warning for warning in average(run, probe=False).warnings if warning.code == "same-weights"]
    message = '"c_1.pt" = "c_2.safetensors" have the same weights, so the average counts 1 checkpoint twice'
    assert [warning.message for warning in warnings] == [message]
