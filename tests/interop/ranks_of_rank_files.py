"""Four processes that save their own parts with ``torch.save``: ``python -m tests.interop.ranks_of_rank_files FOLDER``.

The first process also stores the whole tensors of each step in ``whole_STEP.pt``, from before they were sharded.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

RANKS = 4
STEPS = (90, 100, 110)
PLAN = {"first": ColwiseParallel(), "second": RowwiseParallel()}


class RowNet(nn.Module):
    """A network of tensors that four processes cannot share evenly, in two types."""

    def __init__(self, step: int) -> None:
        super().__init__()
        torch.manual_seed(step)
        self.first, self.second = nn.Linear(7, 10), nn.Linear(10, 5)
        self.small = nn.Linear(3, 6, bias=False, dtype=torch.bfloat16)
        self.scale = nn.Parameter(torch.randn(1))
        self.norm = nn.BatchNorm1d(5)
        self.norm.running_mean = torch.randn(5)
        self.norm.num_batches_tracked = torch.tensor(step)


def sharded(step: int) -> dict[str, Any]:
    """Return this process's part under FSDP2."""
    model = RowNet(step)
    fully_shard(model.first)
    fully_shard(model)
    return model.state_dict()


def hybrid(step: int) -> dict[str, Any]:
    """Return the same with two copies of the model."""
    model = RowNet(step)
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))
    return model.state_dict()


def both(step: int) -> dict[str, Any]:
    """Return the same under FSDP2 over tensor parallelism: one dimension of a tensor is cut twice, right to left."""
    model = RowNet(step)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], PLAN)
    fully_shard(model, mesh=mesh["data"])
    return model.state_dict()


def placed(step: int) -> dict[str, Any]:
    """Return tensors in several placements on a mesh of two dimensions."""
    mesh = init_device_mesh("cpu", (2, 2))
    state = RowNet(step).state_dict()
    ways = [(Shard(0), Shard(0)), (Replicate(), Shard(0)), (Shard(0), Replicate()), (Replicate(), Replicate())]
    matrices = [(Shard(1), Shard(0)), (Shard(1), Shard(1)), *ways]
    made = {}
    for number, (name, tensor) in enumerate(state.items()):
        choices = matrices if tensor.ndim > 1 else ways
        made[name] = distribute_tensor(tensor, mesh, choices[number % len(choices)]) if tensor.ndim else tensor
    return made


def flat(step: int) -> dict[str, Any]:
    """Return this process's part under FSDP1, as a state dict of ``ShardedTensor``."""
    return _by_fsdp1(step, StateDictType.SHARDED_STATE_DICT, use_orig_params=True)


def local(step: int) -> dict[str, Any]:
    """Return the flat parameters of FSDP1."""
    return _by_fsdp1(step, StateDictType.LOCAL_STATE_DICT, use_orig_params=False)


def flat_hybrid(step: int) -> dict[str, Any]:
    """Return this process's part under FSDP1 with two copies: a state dict of ``DTensor``."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    strategy = ShardingStrategy.HYBRID_SHARD
    return _by_fsdp1(step, StateDictType.SHARDED_STATE_DICT, device_mesh=mesh, sharding_strategy=strategy)


def _by_fsdp1(step: int, kind: StateDictType, **options: Any) -> dict[str, Any]:
    model = RowNet(step)
    policy = ModuleWrapPolicy({nn.Linear})
    wrapped = FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)
    with FullyShardedDataParallel.state_dict_type(wrapped, kind):
        return wrapped.state_dict()


def copied(step: int) -> dict[str, Any]:
    """Return the whole model, as every data-parallel process has it."""
    return RowNet(step).state_dict()


def halved(step: int) -> dict[str, Any]:
    """Return a part without any statement of which it is, as Megatron's torch format has it."""
    return {name: tensor.chunk(2)[dist.get_rank() % 2] for name, tensor in copied(step).items() if tensor.ndim == 2}


def of_old_torch(step: int) -> dict[str, Any]:
    """Return what ``hybrid`` does, with the mesh pickled by the attributes that it had up to torch 2.8."""
    DeviceMesh.__getstate__ = _old_state  # type: ignore[method-assign,assignment]
    return hybrid(step)


def _old_state(mesh: DeviceMesh) -> dict[str, Any]:
    coordinate = mesh.get_coordinate()
    return {
        "device_type": mesh.device_type,
        "mesh": mesh.mesh,
        "mesh_dim_names": mesh.mesh_dim_names,
        "_flatten_mesh_list": tuple(mesh.mesh.flatten().tolist()),
        "_thread_id": None,
        "_coordinate_on_dim": None if coordinate is None else list(coordinate),
        "_dim_group_names": [],
    }


WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    one.__name__: one for one in (sharded, hybrid, both, placed, flat, local, flat_hybrid, copied, halved, of_old_torch)
}


def save(folder: Path, way: str, step: int) -> None:
    """Save the state dict of this process, in the files of torch's examples, and in those of verl."""
    state, rank = WAYS[way](step), dist.get_rank()
    place = folder / way / f"step-{step}"
    place.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "step": step}, place / f"rank_{rank}.pt")
    if way in ("flat", "local"):
        dcp.save({"model": state, "step": step}, checkpoint_id=folder / f"{way}-dcp" / f"step-{step}")
    if way == "sharded":
        actor = folder / "verl" / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True, exist_ok=True)
        moments = {"state": {name: {"exp_avg": tensor} for name, tensor in state.items()}, "param_groups": []}
        torch.save(state, actor / f"model_world_size_{RANKS}_rank_{rank}.pt")
        torch.save(moments, actor / f"optim_world_size_{RANKS}_rank_{rank}.pt")
        extra = {"lr_scheduler": None, "rng": {"cpu": torch.get_rng_state()}}
        torch.save(extra, actor / f"extra_state_world_size_{RANKS}_rank_{rank}.pt")
        if rank == 0:
            (actor / "huggingface").mkdir(exist_ok=True)
            (actor / "huggingface" / "config.json").write_text("{}", encoding="utf-8")
            torch.save({"_snapshot": {"_main_snapshot": {}}, "_steps_since_snapshot": 0}, actor.parent / "data.pt")


def save_by_accelerate(folder: Path, kind: str, step: int) -> None:
    """Save model and optimizer under FSDP1 as accelerate, and the Trainer of transformers with it, do."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import save_fsdp_model, save_fsdp_optimizer

    model = RowNet(step)
    policy = ModuleWrapPolicy({nn.Linear})
    options: dict[str, Any] = {"use_orig_params": kind != "LOCAL", "device_id": torch.device("cpu")}
    wrapped = FullyShardedDataParallel(model, auto_wrap_policy=policy, **options)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, state_dict_type=f"{kind}_STATE_DICT")
    accelerator = Accelerator(cpu=True)
    place = folder / f"accelerate-{kind.lower()}" / f"checkpoint-{step}"
    place.mkdir(parents=True, exist_ok=True)
    if kind == "FULL":  # which ends in a fault of memory on the CPU: accelerate saves the same file
        if dist.get_rank() == 0:
            torch.save(RowNet(step).state_dict(), place / "pytorch_model_fsdp.bin")
    else:
        save_fsdp_model(plugin, accelerator, wrapped, str(place))
    if kind == "SHARDED":
        save_fsdp_optimizer(plugin, accelerator, optimizer, wrapped, str(place))
    if dist.get_rank() == 0:
        torch.save({"last_epoch": step}, place / "scheduler.bin")
        if kind == "FULL":
            torch.save({"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": []}, place / "optimizer.bin")
        (place / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")


def work(rank: int, folder: Path) -> None:
    """Be one of the processes. They meet in a file, and talk over the loopback only."""
    alone = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    # What torchrun sets; accelerate looks at it, though the processes have met already.
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update(alone | {name: str(value) for name, value in launched.items()})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for step in STEPS:
        if rank == 0:
            torch.save(RowNet(step).state_dict(), folder / f"whole_{step}.pt")
    for way in WAYS:
        for step in STEPS:
            save(folder, way, step)
    for kind in ("SHARDED", "FULL", "LOCAL"):
        for step in STEPS:
            save_by_accelerate(folder, kind, step)
    dist.barrier()
    # Everything is saved and the other processes are here: leave without the end of torch's threads, which may abort.
    os._exit(0)


if __name__ == "__main__":
    import torch._dynamo

    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]),), RANKS, start_method="fork")
