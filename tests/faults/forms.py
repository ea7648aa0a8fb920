"""Checkpoints of every form, written and read back by the official libraries.

Torch is imported only where a checkpoint is made: most parts of a campaign need none of it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]
_SHARDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A way in which a checkpoint is stored."""

    name: str
    """Of the checkpoint of a step, with ``{}`` for the step."""
    save: Callable[[State, Path], None]
    load: Callable[[Path], State]
    plain: bool = False
    """Whether tensors are stored in C order, each for itself."""


def _save_zip(state: State, path: Path) -> None:
    import torch  # noqa: PLC0415

    torch.save(state, path)


def _save_legacy(state: State, path: Path) -> None:
    import torch  # noqa: PLC0415

    torch.save(state, path, _use_new_zipfile_serialization=False)


def _load_torch(path: Path) -> State:
    import torch  # noqa: PLC0415

    return dict(torch.load(path, weights_only=True))


def save_safetensors(state: State, path: Path) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(state, path, {"format": "pt"})


def load_safetensors(path: Path) -> State:
    """Read a safetensors file."""
    from safetensors.torch import load_file  # noqa: PLC0415

    return dict(load_file(path))


def _save_shards(state: State, path: Path) -> None:
    path.mkdir()
    index: dict[str, str] = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"
        part = {name: tensor for position, (name, tensor) in enumerate(state.items()) if position % _SHARDS == number}
        save_safetensors(part, path / file)
        index |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _load_shards(path: Path) -> State:
    index: Mapping[str, str] = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: load_safetensors(path / file)[name] for name, file in index.items()}


def _save_dcp(state: State, path: Path) -> None:
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    writer = dcp.FileSystemWriter(path, thread_count=_SHARDS, sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**state}, storage_writer=writer, no_dist=True)


def _load_dcp(path: Path) -> State:
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415

    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(tuple(known.size), dtype=known.properties.dtype)
        for name, known in metadata.items()
        if isinstance(known, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load({**state}, checkpoint_id=path, no_dist=True)
        except CheckpointException as failure:  # a BaseException
            raise OSError(str(failure)) from failure
    return state


FORMS: dict[str, Form] = {
    "safetensors": Form(name="ckpt_{}.safetensors", save=save_safetensors, load=load_safetensors, plain=True),
    "zip": Form(name="ckpt_{}.pt", save=_save_zip, load=_load_torch),
    "legacy": Form(name="ckpt_{}.pth", save=_save_legacy, load=_load_torch),
    "shards": Form(name="checkpoint-{}", save=_save_shards, load=_load_shards, plain=True),
    "dcp": Form(name="step-{}", save=_save_dcp, load=_load_dcp),
}


def random_state(seed: int, elements: int) -> State:
    """Return four tensors of float32."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    return {f"layer{number}.weight": torch.randn(elements, generator=generator) for number in range(4)}
