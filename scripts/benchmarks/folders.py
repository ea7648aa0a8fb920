"""Folders of many files to plan with: Hugging Face shards without data, and DCP folders of many ranks."""

import io
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from .measure import Settings, note

_TENSOR_BYTES = 1 << 20
_ROWS, _COLUMNS = 4, 16
"""Of one piece in a DCP folder."""


class Folders(NamedTuple):
    """Checkpoints of many files."""

    kind: str
    """``shards`` (Hugging Face) or ``DCP``."""
    checkpoints: int
    files: int
    """Of each checkpoint."""
    tensors: int

    @property
    def pieces(self) -> int:
        """The places of a checkpoint where a tensor, or a part of one, is stored."""
        return self.tensors * (self.files if self.kind == "DCP" else 1)


@contextmanager
def folders_on_disk(some: Folders, settings: Settings) -> Iterator[Path]:
    """Make the checkpoints in a folder, and delete them."""
    run = settings.scratch / "folders"
    note(f"making {some.checkpoints} x {some.files} files in {run}")
    try:
        for number in range(some.checkpoints):
            folder = run / f"checkpoint-{number + 1}"
            folder.mkdir(parents=True)
            (_make_dcp if some.kind == "DCP" else _make_shards)(folder, some)
        yield run
    finally:
        rmtree(run, ignore_errors=True)


def _make_shards(folder: Path, some: Folders) -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in range(some.tensors)]
    places: dict[str, str] = {}
    for number in range(some.files):
        mine = names[number * some.tensors // some.files : (number + 1) * some.tensors // some.files]
        path = folder / f"model-{number + 1:05}-of-{some.files:05}.safetensors"
        _write_sparse_bfloat16(path, mine)
        places |= dict.fromkeys(mine, path.name)
    index = {"metadata": {"total_size": _TENSOR_BYTES * some.tensors}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "toy"}\n', encoding="utf-8")


def _write_sparse_bfloat16(path: Path, names: list[str]) -> None:
    shape, size = [_TENSOR_BYTES // 2], _TENSOR_BYTES
    entries = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
        for number, name in enumerate(names)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + len(names) * size)


def _make_dcp(folder: Path, some: Folders) -> None:
    """Write the folder that torch would: every rank stores some rows of every tensor."""
    buffer = io.BytesIO()
    torch.save(torch.randn(_ROWS, _COLUMNS).bfloat16(), buffer)
    piece = buffer.getvalue()
    names = [f"model.layers.{number}.mlp.weight" for number in range(some.tensors)]
    offsets = [torch.Size([rank * _ROWS, 0]) for rank in range(some.files)]
    chunks = [ChunkStorageMetadata(offsets=begin, sizes=torch.Size([_ROWS, _COLUMNS])) for begin in offsets]
    whole = TensorStorageMetadata(
        properties=TensorProperties(dtype=torch.bfloat16),
        size=torch.Size([_ROWS * some.files, _COLUMNS]),
        chunks=chunks,
    )
    stored = {
        MetadataIndex(name, begin, rank): _StorageInfo(f"__{rank}_0.distcp", number * len(piece), len(piece))
        for number, name in enumerate(names)
        for rank, begin in enumerate(offsets)
    }
    metadata = Metadata(state_dict_metadata=dict.fromkeys(names, whole), planner_data={}, storage_data=stored)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for rank in range(some.files):
        (folder / f"__{rank}_0.distcp").write_bytes(piece * some.tensors)
