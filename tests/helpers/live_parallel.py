"""Training with a live EMA under tensor parallelism, DistributedDataParallel and FSDP1, in each of two processes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ema_cli import EMA
from tests.helpers.live_checks import after_an_error, counted, equal, error_of, parts_of, whole
from tests.helpers.live_nets import STEPS, UnevenNet, look, plain_name, rows, set_weights

RANKS = 2
FLAT_WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "gradients": {"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP},
    "whole": {"sharding_strategy": ShardingStrategy.NO_SHARD},
    "bfloat16": {"mixed_precision": MixedPrecision(param_dtype=torch.bfloat16)},
}


def placements() -> dict[str, Any]:
    """Train distributed parameters in every placement."""
    mesh = init_device_mesh("cpu", (RANKS,))
    model = nn.ParameterDict()
    for name, placement in (("rows", Shard(0)), ("columns", Shard(1)), ("copied", Replicate())):
        model[name] = nn.Parameter(distribute_tensor(torch.zeros(3, 5), mesh, [placement]))
    ema = EMA(model, 0.5)
    collectives: list[int] = []
    for step in STEPS:
        set_weights(model, step)
        with counted(collectives):
            ema.update()
    own = parts_of(model)
    with counted(collectives):
        ema.apply_shadow()
    applied = whole(dict(model.items()))
    with counted(collectives):
        ema.restore()
    restored = equal(parts_of(model), own)
    copied = ema.average_model()
    set_weights(model, 0)
    summed = nn.ParameterDict({"summed": nn.Parameter(DTensor.from_local(torch.zeros(3), mesh, [Partial()]))})
    return {
        "averages": [whole(ema.shadow), applied, whole(dict(copied.named_parameters()))],
        "restored": restored,
        "collectives": collectives,
        "partial": error_of(EMA(summed, 0.5).register),
    }


def tensor_parallel() -> dict[str, Any]:
    """Train with tensor parallelism, alone and inside FSDP2; the state of one process is loaded into it."""
    plan = {"second": ColwiseParallel(), "last": RowwiseParallel()}
    found = {}
    for way, shape in (("alone", (RANKS,)), ("parallel", (1, RANKS)), ("sharded", (RANKS, 1))):
        model = UnevenNet()
        model.third = nn.Linear(5, 5, bias=False)
        names = ("data", "tensor")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        parallelize_module(model, mesh["tensor"], plan)
        if "data" in names:
            fully_shard(model, mesh=mesh["data"])
        ema = EMA(model, 0.5)
        for step in STEPS:
            set_weights(model, step)
            ema.update()
        again = EMA(model, 0.5)
        again.load_state_dict({**ema.state_dict(), "averages": [whole(ema.shadow)]})
        found[way] = {"average": whole(ema.shadow), "loaded": equal(whole(again.shadow), whole(ema.shadow))}
    return found


def data_parallel() -> dict[str, Any]:
    """Train with DistributedDataParallel on other data in each process."""
    model = UnevenNet()
    parallel = nn.parallel.DistributedDataParallel(model)
    around, inside = EMA(parallel, 0.5), EMA(model, 0.5)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    trajectory: list[dict[str, torch.Tensor]] = []
    collectives: list[int] = []
    for step in STEPS:
        parallel(rows() + dist.get_rank() + step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        trajectory.append(parts_of(model))
        with counted(collectives):
            around.update()
            inside.update()
    with around.applied():
        seen = look(parallel)
    return {
        "trajectory": trajectory,
        "average": around.shadow,
        "inside": equal(inside.shadow, around.shadow),
        "seen": seen,
        "own": look(parallel),
        "copy": around.average_model().state_dict(),
        "collectives": collectives,
    }


def ways_of_fsdp1(folder: Path) -> dict[str, Any]:
    """Train with FullyShardedDataParallel that keeps the names of the parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `NO_SHARD` sharding strategy is deprecated", FutureWarning)
        return {way: _flat(way, folder / way) for way in FLAT_WAYS}


def _wrapped_flat(way: str) -> FullyShardedDataParallel:
    inner = UnevenNet()
    settings = {"use_orig_params": True, "device_id": torch.device("cpu"), **FLAT_WAYS[way]}
    inner.first = FullyShardedDataParallel(inner.first, **settings)
    return FullyShardedDataParallel(inner, **settings)


def _set_flat(model: FullyShardedDataParallel, step: int) -> None:
    with FullyShardedDataParallel.summon_full_params(model):
        set_weights(model, step)


def _flat(way: str, folder: Path) -> dict[str, Any]:
    """Train with passes without gradients, and with gradients that are not used, between the steps."""
    model = _wrapped_flat(way)
    ema = EMA(model, 0.5)
    seen, restored = {}, []
    collectives: list[int] = []
    for step in STEPS:
        model(rows()).sum().backward()
        model.zero_grad()
        _set_flat(model, step)
        own = parts_of(model)
        model(rows())
        with counted(collectives):
            ema.update()
        look(model)
        with counted(collectives):
            ema.apply_shadow()
        seen[step] = look(model)
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            applied = {plain_name(name): tensor for name, tensor in parts_of(model).items()}
        with counted(collectives):
            ema.restore()
        restored.append(equal(parts_of(model), own))
    last = model.module.get_submodule("last")
    return {
        "applied": applied,
        "seen": seen,
        "own": look(model),
        "restored": restored,
        "collectives": collectives,
        "copy": error_of(ema.average_model),
        "a part": error_of(EMA(model.module, 0.5).register),
        "continued": _continued(ema, way, folder),
        # After an error in a pass, torch itself can do nothing more with a model that is not sharded.
        "after an error": after_an_error(model, last, _set_flat) if way != "whole" else {},
    }


def _continued(ema: EMA, way: str, folder: Path) -> dict[str, Any]:
    """Save the state, load it into another EMA; then load that of the other process."""
    dcp.save({"ema": ema.state_dict()}, checkpoint_id=folder)
    again = EMA(_wrapped_flat(way), 0.5)
    again.register()
    state = {"ema": again.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    again.load_state_dict(state["ema"])
    return {
        "equal": equal(again.shadow, ema.shadow),
        "step": again.step,
        "other": error_of(lambda: again.load_state_dict({f"process {1 - dist.get_rank()} of {RANKS}": {}})),
    }


def without_names() -> dict[str, Any]:
    """Wrap in FullyShardedDataParallel that keeps no names."""
    model = FullyShardedDataParallel(nn.Linear(3, 2), use_orig_params=False, device_id=torch.device("cpu"))
    return {"message": error_of(EMA(model, 0.5).register)}
