"""The format before torch 1.6: every tensor equals what ``torch.load`` gives, and incomplete files are refused."""

from __future__ import annotations

import gc
import io
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.errors import InputRefused
from ema_cli.formats.torch import legacy_format as torch_legacy
from ema_cli.formats.torch.legacy_format import MAGIC
from tests.helpers.makers import every_kind, expected, open_file, overwrite, read_file, save
from tests.hostile.opcodes import mapping, num, stop, storage, tensor, text, touch, tup

SMALL = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def legacy(
    path: Path, value: bytes, keys: object = ("0",), *, system: object = None, tail: bytes | None = None
) -> Path:
    """Write a file of the old format around any pickle, by default with one storage of four floats."""
    head = [pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, SYSTEM if system is None else system)]
    listed = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, protocol=2)
    data = (4).to_bytes(8, "little") + bytes(16) if tail is None else tail
    return overwrite(path, b"".join([*head, value, listed, data]))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small plain checkpoint."""
    return save(tmp_path / "small.pth", SMALL, legacy=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_equals_torch(tmp_path: Path, protocol: int) -> None:
    """Every type, layout, sharing and pickle protocol gives the names, types, shapes and bytes of ``torch.load``.

    Torch writes its newer types in this format too, but cannot read them back: for those the saved tensors count.
    """
    saved = every_kind()
    path = save(tmp_path / "every.pth", saved, protocol=protocol, legacy=True)
    checkpoint = open_file(path)
    assert checkpoint.format == "torch legacy"
    assert checkpoint.ties == {"tied": "base", "parameter.tied": "parameter"}
    checkpoint.index.close()
    assert read_file(path) == expected(saved)
    common = {name: value for name, value in saved.items() if value.dtype not in torch.storage._new_dtypes()}
    path = save(tmp_path / "common.pth", common, protocol=protocol, legacy=True)
    assert read_file(path) == expected(torch.load(path, weights_only=False))


def test_plain_weights_equal_the_safe_loader(small: Path) -> None:
    """For weights alone the oracle is ``torch.load(weights_only=True)``."""
    assert read_file(small) == expected(torch.load(small, weights_only=True))


def test_every_truncation_is_refused(small: Path) -> None:
    """A file that ends anywhere before its end is refused, whatever offset it was cut at."""
    whole = small.read_bytes()
    for length in range(len(whole)):
        overwrite(small, whole[:length])
        with pytest.raises(InputRefused):
            open_file(small)


def test_bytes_behind_the_last_storage_are_refused(small: Path) -> None:
    """The storages must end where the file ends: anything else shows that the reader lost its position."""
    overwrite(small, small.read_bytes() + b"\0")
    with pytest.raises(InputRefused, match="has 1 bytes after its last storage"):
        open_file(small)


def test_a_pickle_may_be_cut_anywhere_by_the_first_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle longer than one read is read further, wherever the first read ended."""
    size = small.stat().st_size
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes long if much is loaded
    for first in range(1, size):
        monkeypatch.setattr(torch_legacy, "_FIRST_READ", first)
        assert len(open_file(small).index) == len(SMALL)


@pytest.mark.slow
def test_a_large_pickle_is_read(tmp_path: Path) -> None:
    """A pickle of several megabytes is read, and the storages after it are found."""
    value = {"model": SMALL, "log": [str(number) for number in range(300_000)]}
    path = save(tmp_path / "large.pth", value, legacy=True)
    assert read_file(path) == expected(SMALL)


def test_a_giant_pickle_is_not_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further reading stops at the limit."""
    monkeypatch.setattr(torch_legacy, "_FIRST_READ", 16)
    monkeypatch.setattr(torch_legacy, "LARGEST_PICKLE", 64)
    with pytest.raises(InputRefused, match="has a pickle of more than 64 bytes"):
        open_file(small)


def test_a_bare_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    """The error for a file that the pickle module wrote says so."""
    path = overwrite(tmp_path / "bare.pt", pickle.dumps({"w": [1.0, 2.0]}))
    with pytest.raises(InputRefused, match="is a bare pickle") as raised:
        open_file(path)
    assert "save its state dict with torch.save" in raised.value.hint


def test_other_systems_are_refused(tmp_path: Path) -> None:
    """Big-endian files, unknown versions and files without a description of their system are refused."""
    value = stop(mapping(w=tensor()))
    for system in ({"little_endian": False}, {}, [1], None):
        with pytest.raises(InputRefused, match="big-endian"):
            open_file(legacy(tmp_path / "big.pth", value, system=system if system is not None else 7))
    version = pickle.dumps(MAGIC, protocol=2) + pickle.dumps(1002, protocol=2)
    with pytest.raises(InputRefused, match="unknown version"):
        open_file(overwrite(tmp_path / "new.pth", version))


@pytest.mark.parametrize(
    ("keys", "tail"),
    [
        (7, b""),
        ([7], b""),
        (["1"], b""),
        (["0", "0"], 2 * ((4).to_bytes(8, "little") + bytes(16))),
        (["0"], (-4).to_bytes(8, "little", signed=True)),
        (["0"], (1 << 62).to_bytes(8, "little") + bytes(16)),
        (["0"], (3).to_bytes(8, "little") + bytes(16)),
        ([], b""),
    ],
)
def test_false_lists_of_storages_are_refused(tmp_path: Path, keys: object, tail: bytes) -> None:
    """A list of storages that is no list, names others, repeats one or has a wrong count is refused."""
    path = legacy(tmp_path / "lie.pth", stop(mapping(w=tensor())), keys, tail=tail)
    with pytest.raises(InputRefused):
        open_file(path)


def test_views_of_storages_are_refused(tmp_path: Path) -> None:
    """Files from before 0.4 store views of storages: reading the whole storage instead would be silently wrong."""
    view = tensor(storage(extra=tup(text("1"), num(1), num(2))), shape=(2,))
    with pytest.raises(InputRefused, match=r"before 0\.4"):
        open_file(legacy(tmp_path / "old.pth", stop(mapping(w=view))))
    none = tensor(storage(extra=b"N"))
    assert read_file(legacy(tmp_path / "new.pth", stop(mapping(w=none)))) == expected({"w": torch.zeros(4)})


def test_a_whole_module_is_read(tmp_path: Path) -> None:
    """Module classes are stored as persistent ids with their source, and none of it is used."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = save(tmp_path / "module.pth", module, legacy=True)
    assert read_file(path) == expected(module.state_dict())


def test_nothing_is_run(tmp_path: Path) -> None:
    """A call in the pickle is recorded and not made."""
    canary = tmp_path / "canary"
    path = legacy(tmp_path / "evil.pth", stop(mapping(model=mapping(w=tensor()), evil=touch(canary))))
    assert read_file(path) == expected({"w": torch.zeros(4)})
    assert not canary.exists()


def a_small_file() -> bytes:
    """Return the bytes of a small file in the old format."""
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.arange(6.0)}, "step": 3}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


SEED = a_small_file()


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_files_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """Random bytes in a file give a result or ``InputRefused``, never another exception."""
    raw = bytearray(SEED)
    for place, value in changes:
        raw[place] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_file(overwrite(Path(folder) / "mutated.pth", raw))
        except InputRefused:
            return
