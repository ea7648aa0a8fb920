"""Processes that load DCP folders, each its part: ``python -m tests.interop.ranks_of_dcp COUNT FOLDER KEY ...``.

Every tensor is loaded as a whole, in copies, and in shards along each dimension; a model under FSDP2 loads its
parameters. All must be the tensors of ``FOLDER.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.helpers.makers import tensor_bytes
from tests.interop.ranks import Net

State = Mapping[str, torch.Tensor]
Placements = list[Any]


def load(folder: Path, state: State, key: str) -> None:
    """Fill the tensors of a state dict, which is at ``key`` of the whole one."""
    nested: Any = dict(state)
    for name in reversed(key.split(".")) if key else ():
        nested = {name: nested}
    dcp.load(nested, checkpoint_id=folder)


def is_part_of(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a tensor has the bytes that are expected, or this rank's part of them."""
    if isinstance(found, DTensor):
        part = place(expected, found.device_mesh, found.placements)
        return tensor_bytes(found.to_local()) == tensor_bytes(part.to_local())
    return tensor_bytes(found) == tensor_bytes(expected)


def place(tensor: torch.Tensor, mesh: Any, placements: Any) -> DTensor:
    """Distribute a tensor that every rank has: gloo cannot send some element types."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def check(found: State, expected: State, what: str) -> None:
    """Compare tensors byte for byte."""
    wrong = [name for name, tensor in expected.items() if not is_part_of(found[name], tensor)]
    assert not wrong, f"{what}: {wrong}"


def load_in_every_way(folder: Path, expected: State, key: str) -> None:
    """Load the tensors in one piece, in copies, in rows, in columns, in the last dimension and in a grid."""
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    grid = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
    ways: dict[str, Callable[[torch.Tensor], tuple[Any, Placements]]] = {
        "copies": lambda _: (line, [Replicate()]),
        "rows": lambda tensor: (line, [Shard(0) if tensor.dim() else Replicate()]),
        "last": lambda tensor: (line, [Shard(tensor.dim() - 1) if tensor.dim() else Replicate()]),
        "grid": lambda tensor: (grid, [Shard(0), Shard(1)] if tensor.dim() > 1 else [Replicate(), Replicate()]),
    }
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    load(folder, state, key)
    check(state, expected, "plain tensors")
    for what, way in ways.items():
        state = {name: place(torch.zeros_like(tensor), *way(tensor)) for name, tensor in expected.items()}
        load(folder, state, key)
        check(state, expected, what)


def new_model() -> torch.nn.Module:
    """Return a model of zeros under FSDP2."""
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fully_shard(model.layers)
    fully_shard(model)
    return model


def load_by_accelerate(folder: Path, expected: State) -> None:
    """Load a model as ``Accelerator.load_state`` and the Trainer of transformers do."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import load_fsdp_model

    model = new_model()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    load_fsdp_model(plugin, Accelerator(cpu=True), model, str(folder))
    check(model.state_dict(), expected, "accelerate")


def load_model(folder: Path, expected: State, key: str) -> None:
    """Load a model under FSDP2 as torch recommends."""
    model = new_model()
    weights: Any = get_model_state_dict(model)
    load(folder, weights, key)
    set_model_state_dict(model, weights)
    check(model.state_dict(), expected, "FSDP2")


def work(rank: int, count: int, meeting: str, outputs: Sequence[str]) -> None:
    """Be one of the processes. They meet in a folder."""
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in launched.items()} | {"ACCELERATE_USE_CPU": "true"})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{meeting}/file", rank=rank, world_size=count)
    for folder, key in zip(outputs[::2], outputs[1::2], strict=True):
        expected: dict[str, torch.Tensor] = torch.load(f"{folder}.pt", weights_only=True)
        if set(expected) == set(Net().state_dict()):
            load_model(Path(folder), expected, key)
            if key == "model":
                load_by_accelerate(Path(folder), expected)
        load_in_every_way(Path(folder), expected, key)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    processes = int(sys.argv[1])
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (processes, folder, sys.argv[2:]), processes, start_method="fork")
