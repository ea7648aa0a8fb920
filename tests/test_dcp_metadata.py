"""``.metadata`` of a DCP output: what ``dcp.save`` writes for the same tensors, without torch."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

from ema_cli.formats.dcp import chunk_sizes
from ema_cli.formats.dcp.chunk_sizes import cut
from ema_cli.formats.dcp.folder import items_digest
from ema_cli.formats.dcp.metadata import parse_metadata
from ema_cli.formats.dcp.metadata_pickle import build_metadata
from ema_cli.formats.dcp.saved_items import ByteRange, Chunk, SavedTensor, TreePath
from ema_cli.formats.dcp.tiling import check_tiling
from tests.helpers import dcp_makers
from tests.helpers.makers import DTYPES, random_tensor

SHAPES = [(), (1,), (5,), (0, 4), (2, 0, 3), (2, 3), (1, 2, 3, 4)]


def declared(tensors: Mapping[TreePath, torch.Tensor], places: Mapping[MetadataIndex, Any]) -> dict[TreePath, Any]:
    """Return whole tensors as records, in the places where torch stored them."""
    found = {}
    for path, tensor in tensors.items():
        shape, origin = tuple(tensor.shape), (0,) * tensor.dim()
        at = places[MetadataIndex(".".join(path), origin)]
        stored = ByteRange(file=at.relative_path, offset=at.offset, length=at.length)
        dtype_name = str(tensor.dtype).removeprefix("torch.")
        chunk = Chunk(origin=origin, shape=shape, stored=stored)
        found[path] = SavedTensor(dtype_name=dtype_name, shape=shape, chunks=(chunk,))
    return found


def check(folder: Path, tensors: Mapping[TreePath, torch.Tensor]) -> bytes:
    """Compare our metadata of tensors with torch's, field by field; return ours."""
    state: dict[str, Any] = {}
    for path, tensor in tensors.items():
        here = state
        for name in path[:-1]:
            here = here.setdefault(name, {})
        here[path[-1]] = tensor
    theirs = pickle.loads((dcp_makers.save(folder, state) / ".metadata").read_bytes())
    written = build_metadata(declared(tensors, theirs.storage_data))
    ours = pickle.loads(written)
    assert isinstance(ours, Metadata)
    assert list(vars(ours)) == list(vars(theirs))
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert list(ours.state_dict_metadata) == list(theirs.state_dict_metadata)
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data
    assert {key: key.index for key in ours.storage_data} == {key: key.index for key in theirs.storage_data}
    assert [vars(place) for place in ours.storage_data.values()] == [
        vars(ours.storage_data[key]) for key in ours.storage_data
    ]
    assert (ours.version, ours.storage_meta) == (theirs.version, StorageMeta())
    for one in ours.state_dict_metadata.values():
        assert isinstance(one, TensorStorageMetadata)
        sizes = [one.size, *(size for chunk in one.chunks for size in (chunk.offsets, chunk.sizes))]
        assert all(type(size) is torch.Size for size in sizes)
        assert isinstance(one.chunks, list)
    return written


def test_metadata_of_every_type_and_shape(tmp_path: Path) -> None:
    """All element types; scalars, empty tensors, names with dots and of any script, nested state dicts."""
    tensors: dict[TreePath, torch.Tensor] = {
        (f"{dtype}.{number}.wéight",): random_tensor(dtype, *shape)
        for dtype in DTYPES
        for number, shape in enumerate(SHAPES)
    }
    tensors |= {
        ("model", "a.b.weight"): torch.zeros(3),
        ("model", "in", "権重"): torch.zeros(2, 2),
        ("x" * 300,): torch.ones(1),
    }
    check(tmp_path / "saved", tensors)


NAMES = st.text(max_size=40)


@given(
    tensors=st.dictionaries(NAMES, st.lists(st.integers(0, 400), max_size=4), max_size=6),
    kinds=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
)
def test_metadata_of_any_names_and_shapes(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, list[int]], kinds: list[torch.dtype]
) -> None:
    """Any text is a name: of quotes, line ends, half a surrogate pair, characters outside the basic plane."""
    small = {name: shape for name, shape in tensors.items() if math.prod(shape) < 1 << 20}
    values: dict[TreePath, torch.Tensor] = {
        (name,): torch.zeros(shape, dtype=kind) for (name, shape), kind in zip(small.items(), kinds, strict=False)
    }
    check(tmp_path_factory.mktemp("any") / "saved", values)


def many(count: int) -> dict[TreePath, SavedTensor]:
    """Return tensors of different shapes in files of more than 4 GB."""
    found: dict[TreePath, SavedTensor] = {}
    for number in range(count):
        shape = (number + 1, 70_000, 1 << 33)
        stored = ByteRange(file=f"__0_{number % 3}.distcp", offset=number << 28, length=1 << 27)
        chunk = Chunk(origin=(0, 0, 0), shape=shape, stored=stored)
        found["model", f"layers.{number}"] = SavedTensor(dtype_name="bfloat16", shape=shape, chunks=(chunk,))
    return found


def test_metadata_of_many_large_tensors() -> None:
    """Numbers and positions of objects need more than one and two bytes; torch and our reader agree about them."""
    tensors = many(2_000)
    written = build_metadata(tensors)
    items = parse_metadata(written)
    assert items.items == {".".join(path): tensor for path, tensor in tensors.items()}
    assert items.paths == {".".join(path): path for path in tensors}
    loaded = pickle.loads(written)
    places = [(key.fqn, place.relative_path, place.offset) for key, place in loaded.storage_data.items()]
    assert places == [(".".join(path), (at := one.chunks[0].stored).file, at.offset) for path, one in tensors.items()]


def test_metadata_are_the_same_every_time() -> None:
    """There is no time, no random number and no folder in them, so equal tensors are recognized as such."""
    assert build_metadata(many(9)) == build_metadata(many(9))
    assert items_digest(build_metadata(many(9))) != items_digest(build_metadata(many(8)))


@given(
    shape=st.lists(st.integers(0, 11), max_size=4),
    itemsize=st.sampled_from([1, 2, 8]),
    most=st.sampled_from([8, 64, 1000, 1 << 25]),
)
def test_chunks_tile_the_tensor_in_order(shape: list[int], itemsize: int, most: int) -> None:
    """No chunk is too large; each is the next range of the tensor's bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_sizes, "MOST_BYTES", most)
        chunks = list(cut(tuple(shape), itemsize))
    check_tiling(tuple(shape), chunks)
    if math.prod(shape) == 0:
        assert chunks == [((0,) * len(shape), tuple(shape))]
        return
    assert all(math.prod(sizes) * itemsize <= most for _, sizes in chunks)
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    parts = [numbers[tuple(slice(o, o + n) for o, n in zip(*chunk, strict=True))].flatten() for chunk in chunks]
    assert torch.equal(torch.cat(parts), numbers.flatten())


@pytest.mark.parametrize("ranks", [1, 2, 8, 64, 1024])
def test_ranks_read_few_bytes_in_vain(ranks: int) -> None:
    """As many ranks as a power of two have rows of a large tensor: a chunk is of one rank, or of 32 MiB at most."""
    shape = (128_256, 8192)  # bfloat16, 2.1 GB
    chunks = list(cut(shape, 2))
    rows = -(-shape[0] // ranks)
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        touched = [
            (origin[0], sizes[0]) for origin, sizes in chunks if origin[0] < last and origin[0] + sizes[0] > first
        ]
        assert sum(count for _, count in touched) <= max(last - first, 2 * max(count for _, count in touched))


def test_a_tensor_of_one_huge_row_is_cut_in_it() -> None:
    """So no record of an archive needs the fields of 64 bits, however large a tensor is."""
    for shape in [(1, 5 << 30), (3, 1 << 31, 7), (1 << 34,), (2, 1, 1 << 32)]:
        chunks = list(cut(shape, 8))
        assert max(math.prod(sizes) for _, sizes in chunks) * 8 <= chunk_sizes.MOST_BYTES
        assert sum(math.prod(sizes) for _, sizes in chunks) == math.prod(shape)
