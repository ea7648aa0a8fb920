"""Three checkpoints with random weights, as one library or another writes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = Mapping[str, NDArray[np.generic]]


def write_series(folder: Path, elements: int, kind: str = "safetensors") -> None:
    """Write three checkpoints of a kind; the largest tensor has so many elements."""
    for number in (1, 2, 3):
        random = np.random.default_rng(number)
        tensors: Tensors = {
            "weight": random.standard_normal(elements, dtype=np.float32),
            "bias": random.standard_normal(1000, dtype=np.float32),
            "count": np.array(number),
        }
        KINDS[kind](folder, number, tensors)


def _safetensors(folder: Path, number: int, tensors: Tensors) -> None:
    save_file(dict(tensors), folder / f"ckpt_{number}.safetensors")


def _zip(folder: Path, number: int, tensors: Tensors) -> None:
    import torch  # noqa: PLC0415 - takes seconds

    torch.save(_torch(tensors), folder / f"ckpt_{number}.pt")


def _legacy(folder: Path, number: int, tensors: Tensors) -> None:
    import torch  # noqa: PLC0415

    torch.save(_torch(tensors), folder / f"ckpt_{number}.pt", _use_new_zipfile_serialization=False)


def _distributed(folder: Path, number: int, tensors: Tensors) -> None:
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(_torch(tensors), checkpoint_id=folder / f"step-{number}", no_dist=True)


def _sharded(folder: Path, number: int, tensors: Tensors) -> None:
    checkpoint = folder / f"checkpoint-{number}"
    checkpoint.mkdir()
    places = {}
    for shard, (name, tensor) in enumerate(tensors.items(), start=1):
        places[name] = f"model-{shard:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, checkpoint / places[name])
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "config.json").write_text('{"model_type": "toy"}\n')


def _torch(tensors: Tensors) -> dict[str, object]:
    import torch  # noqa: PLC0415

    return {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}


KINDS: dict[str, Callable[[Path, int, Tensors], None]] = {
    "safetensors": _safetensors,
    "torch zip": _zip,
    "torch legacy": _legacy,
    "DCP folder": _distributed,
    "sharded folder": _sharded,
}
