"""The archives in a DCP output: those of ``torch.save`` to the byte, without a hash that torch only logs."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.dtypes import BY_TORCH_NAME, DTYPES, DType
from ema_cli.formats.torch.tensor_archive import tensor_archive, tensor_pickle
from tests.helpers.makers import random_tensor, tensor_bytes

SHAPES = [(), (5,), (1,), (0, 4), (3, 0, 2), (2, 3, 4), (300,), (70_000,), (1, 1, 1, 1, 2), (2,) * 12]
LOGGED = "archive/.data/serialization_id"
END_BYTES = 98
"""The three records at the end of an archive: they count the records and state where the directory is."""


def saved(tensor: torch.Tensor) -> bytes:
    """Return what ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


def written(tensor: torch.Tensor, dtype: DType) -> bytes:
    """Return the archive around the data of a tensor, with its checksum."""
    archive = tensor_archive(dtype, tuple(tensor.shape))
    data = tensor_bytes(tensor)
    content = bytearray(archive.head + data + archive.tail)
    assert (len(data), len(content)) == (archive.data_bytes, archive.nbytes)
    for field in archive.crc32_fields:
        assert content[field : field + 4] == bytes(4)
        content[field : field + 4] = zlib.crc32(data).to_bytes(4, "little")
    return bytes(content)


def check(tensor: torch.Tensor, dtype: DType) -> None:
    """Compare the archive of a tensor with torch's, and load it."""
    ours, theirs = written(tensor, dtype), saved(tensor)
    with zipfile.ZipFile(io.BytesIO(ours)) as own, zipfile.ZipFile(io.BytesIO(theirs)) as judge:
        assert own.testzip() is None
        assert own.namelist() == [name for name in judge.namelist() if name != LOGGED]
        records, directory = ours[: own.start_dir], ours[own.start_dir : -END_BYTES]
        assert records == theirs[: judge.getinfo(LOGGED).header_offset]
        assert directory == theirs[judge.start_dir :][: len(directory)]
    loaded = torch.load(io.BytesIO(ours), weights_only=True)
    assert (loaded.dtype, loaded.shape, loaded.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert tensor_bytes(loaded) == tensor_bytes(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.torch_name)
def test_every_type_is_written_as_torch_saves_it(dtype: DType) -> None:
    """Header, padding, pickle, data, descriptors and directory are the same bytes; torch loads the archive."""
    torch.manual_seed(0)
    for shape in SHAPES:
        check(random_tensor(getattr(torch, dtype.torch_name), *shape), dtype)


@given(shape=st.lists(st.integers(0, 300), max_size=3))
def test_every_shape_is_written_as_torch_saves_it(shape: Sequence[int]) -> None:
    """Numbers of one, two and four bytes, and padding of any length."""
    while len(shape) > 1 and torch.Size(shape).numel() > 1_000_000:
        shape = shape[1:]
    check(torch.zeros(shape, dtype=torch.int8), BY_TORCH_NAME["int8"])


class _Arguments(pickle.Unpickler):
    """Loads the arguments of the function that rebuilds a tensor, and the persistent id of its storage."""

    def persistent_load(self, pid: object) -> object:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        return (lambda *arguments: arguments) if name.startswith("_rebuild") else super().find_class(module, name)


@pytest.mark.parametrize("shape", [(1 << 16, 1 << 15), (1 << 31,), (3, 1 << 40), (1 << 61,)])
def test_large_numbers_are_pickled(shape: tuple[int, ...]) -> None:
    """Numbers of more than 32 bits have another opcode, which Python reads."""
    pickled = tensor_pickle(BY_TORCH_NAME["int8"], shape)
    storage, offset, sizes, strides, *_ = _Arguments(io.BytesIO(pickled)).load()
    assert storage == ("storage", torch.CharStorage, "0", "cpu", torch.Size(shape).numel())
    assert (offset, sizes, strides) == (0, shape, torch.empty(shape, dtype=torch.int8, device="meta").stride())


def test_offsets_can_be_computed_as_torch_does() -> None:
    """A loader that computes where a storage is, instead of reading every header, finds it."""
    config: Any = torch.utils.serialization.config
    tensor = torch.randn(33, 7)
    with config.patch({"load.calculate_storage_offsets": True}):
        loaded = torch.load(io.BytesIO(written(tensor, BY_TORCH_NAME["float32"])), mmap=False, weights_only=True)
    assert torch.equal(loaded, tensor)
