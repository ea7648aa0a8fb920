"""Checkpoints of every form, written and read back by the official libraries."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]
_SHARDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A way in which a checkpoint is stored."""

    name: str
    """Of the checkpoint of a step, with ``{}`` for the step."""
    save: Callable[[Arrays, Path], None]
    load: Callable[[Path], Arrays]


def _save_zip(arrays: Arrays, path: Path) -> None:
    import torch  # noqa: PLC0415 - slow, and not needed for every form

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def _save_legacy(arrays: Arrays, path: Path) -> None:
    import torch  # noqa: PLC0415

    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _load_torch(path: Path) -> Arrays:
    import torch  # noqa: PLC0415

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def _save_shards(arrays: Arrays, path: Path) -> None:
    path.mkdir()
    index: dict[str, str] = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"
        part = {name: array for position, (name, array) in enumerate(arrays.items()) if position % _SHARDS == number}
        save_file(part, path / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _load_shards(path: Path) -> Arrays:
    index: Mapping[str, str] = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: load_file(path / file)[name] for name, file in index.items()}


def _save_dcp(arrays: Arrays, path: Path) -> None:
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    writer = dcp.FileSystemWriter(path, thread_count=_SHARDS, sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({name: torch.from_numpy(array) for name, array in arrays.items()}, storage_writer=writer, no_dist=True)


def _load_dcp(path: Path) -> Arrays:
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415

    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(tuple(known.size))
        for name, known in metadata.items()
        if isinstance(known, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def _save_safetensors(arrays: Arrays, path: Path) -> None:
    save_file(arrays, path, {"format": "pt"})


FORMS: dict[str, Form] = {
    "safetensors": Form(name="ckpt_{}.safetensors", save=_save_safetensors, load=load_file),
    "zip": Form(name="ckpt_{}.pt", save=_save_zip, load=_load_torch),
    "legacy": Form(name="ckpt_{}.pth", save=_save_legacy, load=_load_torch),
    "shards": Form(name="checkpoint-{}", save=_save_shards, load=_load_shards),
    "dcp": Form(name="step-{}", save=_save_dcp, load=_load_dcp),
}


def random_arrays(seed: int, elements: int) -> Arrays:
    """Return four tensors of float32."""
    random = np.random.default_rng(seed)
    return {f"layer{number}.weight": random.standard_normal(elements, dtype=np.float32) for number in range(4)}
