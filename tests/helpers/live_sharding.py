"""Training with a live EMA under FSDP2, in each of two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from ema_cli import EMA
from tests.helpers.live_checks import after_an_error, counted, equal, error_of, part_of, parts_of, whole
from tests.helpers.live_nets import STEPS, UnevenNet, look, rows, set_weights

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "kept": {"reshard_after_forward": False},
    "freed": {"reshard_after_forward": True},
    "bfloat16": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "hybrid": {},
}
DECAYS = (0.5, 0.75)


def sharded(**settings: Any) -> UnevenNet:
    """Return the network sharded by FSDP2: one layer, and the rest."""
    model = UnevenNet()
    fully_shard(model.first, **settings)
    fully_shard(model, **settings)
    return model


def train_step(model: nn.Module, step: int) -> None:
    """Run a forward and a backward pass, and then set the weights of a step."""
    model(rows()).sum().backward()
    model.zero_grad()
    set_weights(model, step)


def ways_of_fsdp2() -> dict[str, Any]:
    """Train with every way to call ``fully_shard``."""
    return {way: _evaluated(way) for way in WAYS}


def _evaluated(way: str) -> dict[str, Any]:
    """Train with evaluations of the model and of its average between the steps."""
    hybrid = {"mesh": init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "shards"))} if way == "hybrid" else {}
    model = sharded(**WAYS[way], **hybrid)
    ema = EMA(model, 0.5)
    collectives: list[int] = []
    seen, restored = {}, []
    for step in STEPS:
        train_step(model, step)
        own = parts_of(model)
        look(model)
        with counted(collectives):
            ema.update()
        look(model)
        with counted(collectives):
            ema.apply_shadow()
        seen[step] = look(model)
        with counted(collectives):
            ema.restore()
        restored.append(equal(parts_of(model), own))
    return {
        "average": whole(ema.shadow),
        "parts": {name: tuple(part_of(tensor).shape) for name, tensor in ema.shadow.items()},
        "dtypes": {tensor.dtype for tensor in ema.shadow.values()},
        "seen": seen,
        "own": look(model),
        "restored": restored,
        "collectives": collectives,
    }


def raised() -> dict[str, Any]:
    """Evaluate with an error in the middle of a forward pass, after which FSDP keeps the gathered weights."""
    inner, outer = sharded(), sharded()
    return {
        "inner": after_an_error(inner, inner.first, set_weights),
        "outer": after_an_error(outer, outer.last, set_weights),
    }


def accumulated() -> dict[str, Any]:
    """Evaluate between two backward passes whose gradients the processes add up at the second, and do not."""
    gradients = []
    for evaluates in (True, False):
        model: Any = sharded(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards")))
        set_weights(model, STEPS[0])
        ema = EMA(model, 0.5)
        ema.register()
        for last in (False, True):
            model.set_requires_all_reduce(last)
            model(rows() + dist.get_rank()).sum().backward()
            if evaluates:
                with ema.applied():
                    look(model)
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        gradients.append(whole(found))
    return {"evaluated": gradients[0], "not": gradients[1]}


def orders() -> dict[str, Any]:
    """Make an EMA before the model is sharded, and one that is also registered before."""
    model = UnevenNet()
    made, registered = EMA(model, 0.5), EMA(model, 0.5)
    set_weights(model, STEPS[0])
    registered.register()
    fully_shard(model)
    for step in STEPS:
        train_step(model, step)
        made.update()
    messages = {"sharded later": error_of(registered.update), "a part": error_of(EMA(model.second, 0.5).register)}
    return {"average": whole(made.shadow), **messages}


def copies() -> dict[str, Any]:
    """Collect the whole average while it is applied, as a sharded model has no copy."""
    model = sharded()
    ema = EMA(model, 0.5)
    for step in STEPS:
        set_weights(model, step)
        ema.update()
    look(model)
    with ema.applied():
        look(model)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {"message": error_of(ema.average_model), "state": state}


def states(folder: Path) -> dict[str, Any]:
    """Save the state of an EMA by both processes, load it by both, and go on."""
    model = sharded()
    ema = EMA(model, DECAYS)
    for step in STEPS[:-1]:
        set_weights(model, step)
        ema.update()
    dcp.save({"ema": ema.state_dict()}, checkpoint_id=folder / "state")
    dcp.save({"ema": ema}, checkpoint_id=folder / "stateful")
    return {"state": _loaded(folder / "state"), "stateful": _loaded(folder / "stateful"), "whole": _from_one_process()}


def _loaded(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Continue from a state of two processes, which begins in other rows of another unit."""
    model = UnevenNet()
    fully_shard(model)
    ema = EMA(model, DECAYS)
    ema.register()
    if folder.name == "stateful":
        dcp.load({"ema": ema}, checkpoint_id=folder)
    else:
        state = {"ema": ema.state_dict()}
        dcp.load(state, checkpoint_id=folder)
        ema.load_state_dict(state["ema"])
    set_weights(model, STEPS[-1])
    ema.update()
    return [whole(ema.average_of(number)) for number in range(len(DECAYS))]


def _from_one_process() -> dict[str, Any]:
    """Continue under FSDP2 from the state of an EMA of one process."""
    alone = UnevenNet()
    ema = EMA(alone, 0.5)
    for step in STEPS[:-1]:
        set_weights(alone, step)
        ema.update()
    model = sharded()
    continued = EMA(model, 0.5)
    collectives: list[int] = []
    with counted(collectives):
        continued.load_state_dict(ema.state_dict())
    set_weights(model, STEPS[-1])
    continued.update()
    return {"average": whole(continued.shadow), "collectives": collectives}


def wrapped_inside() -> dict[str, Any]:
    """Train with activation checkpointing inside FSDP2, and torch.compile around it."""
    model = UnevenNet()
    model.third = checkpoint_wrapper(model.third)
    fully_shard(model)
    compiled: Any = torch.compile(model, backend="eager")
    ema = EMA(compiled, 0.5)
    for step in STEPS:
        train_step(compiled, step)
        ema.update()
    with ema.applied():
        seen = look(compiled)
    return {"average": whole(ema.shadow), "seen": seen, "own": look(compiled)}
