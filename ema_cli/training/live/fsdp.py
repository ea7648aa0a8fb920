"""FSDP: a model's sharded parameters put back in place, so that they can be read and written."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ema_cli.errors import UsageError


def put_shards_back(model: nn.Module) -> None:
    """Let a model hold its sharded parameters, and free the gathered ones; without communication.

    After a forward pass without a backward pass FSDP keeps the gathered parameters of the outermost unit, and of others
    as ``reshard_after_forward`` and the sharding strategy say. The next forward pass would use these, and not notice a
    change of the shards.

    Raises:
        ema_cli.errors.UsageError: the parameters belong to a unit around the model, or have no names of their own.

    """
    fsdp = _imported()
    if fsdp is None:
        return
    root = None
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            root = module if root is None or _state_of(module)._is_root else root  # noqa: SLF001
            _reshard(module, root)
        elif isinstance(module, fsdp.FullyShardedDataParallel):
            root = module if root is None else root
            _reshard_flat(module)
        elif root is None and "_is_fsdp_managed_module" in vars(module):
            raise UsageError(
                "the parameters of the model belong to an FSDP unit around it",
                hint="give EMA the outermost module that FSDP shards, or apply fully_shard to this module too",
            )


def refuse_copy(model: nn.Module) -> None:
    """Raise if FSDP shards the model or a part of it: such a model cannot be copied.

    Raises:
        ema_cli.errors.UsageError: it does.

    """
    fsdp = _imported()
    if fsdp and _holds(model, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)):
        raise UsageError(
            "a model that FSDP shards cannot be copied",
            hint="evaluate it in place: with ema.applied(): ...; inside, torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), called by every process, "
            "returns the whole weights",
        )


def own_part(model: nn.Module) -> str | None:
    """Return the name of this process's part of the state, if it fits no other process; otherwise none.

    FSDP2 has distributed tensors, which ``torch.distributed.checkpoint`` puts together. FullyShardedDataParallel cuts
    all parameters of a unit as one row of numbers, and a process holds only its own.
    """
    fsdp = _imported()
    if fsdp is None or not _holds(model, fsdp.FullyShardedDataParallel):
        return None
    return f"process {dist.get_rank()} of {dist.get_world_size()}"


def _holds(model: nn.Module, kinds: type | tuple[type, ...]) -> bool:
    return any(isinstance(module, kinds) for module in model.modules())


def _imported() -> ModuleType | None:
    """Return torch's module for FSDP; none if nothing imported it, so that no model can be sharded by it."""
    return sys.modules.get("torch.distributed.fsdp")


def _state_of(unit: Any) -> Any:  # noqa: ANN401 - of FSDP2, without public types
    return unit._get_fsdp_state()  # noqa: SLF001


def _reshard(unit: Any, root: Any) -> None:  # noqa: ANN401 - FSDPModule
    """Free the gathered parameters of a unit of FSDP2, also after a forward pass that raised, which it ignores."""
    unit.reshard()
    groups = getattr(_state_of(unit), "_fsdp_param_groups", ())
    if hasattr(root, "reset_iter_state") and not all(group.is_sharded for group in groups):
        root.reset_iter_state()


def _reshard_flat(unit: Any) -> None:  # noqa: ANN401 - FullyShardedDataParallel, whose parts have no types
    """Free the gathered parameters of a unit of FSDP1, which has no public call for that."""
    handle = unit._handle  # noqa: SLF001
    if handle is None:
        return
    if not handle._use_orig_params:  # noqa: SLF001
        raise UsageError(
            "FullyShardedDataParallel without use_orig_params keeps the parameters of a unit in one, without names",
            hint="set use_orig_params=True, or shard with fully_shard (FSDP2)",
        )
    # Until the first forward pass it does not know its root, and has gathered nothing.
    if unit._is_root is not None and handle.uses_sharded_strategy and not handle.needs_unshard():  # noqa: SLF001
        from torch.distributed.fsdp import _runtime_utils  # noqa: PLC0415 - takes half a second

        with torch.no_grad():  # else, after a forward pass that raised, the parameters remain views of what is freed
            _runtime_utils._reshard(unit, handle, free_unsharded_flat_param=True)  # noqa: SLF001
