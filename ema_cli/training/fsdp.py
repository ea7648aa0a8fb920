"""FSDP: a model's sharded parameters put back in place, so that they can be read and written."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

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
    units = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    if getattr(model, "_is_fsdp_managed_module", False) and not isinstance(model, units):
        raise UsageError(
            "the parameters of the model belong to an FSDP unit around it",
            hint="give EMA the outermost module that FSDP shards, or apply fully_shard to this module too",
        )
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
        elif isinstance(module, fsdp.FullyShardedDataParallel):
            _reshard_flat(module)


def holds_flat_parts(model: nn.Module) -> bool:
    """Return whether FullyShardedDataParallel shards the model: a process then holds runs of numbers, not rows."""
    fsdp = _imported()
    return fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())


def refuse_copy(model: nn.Module) -> None:
    """Raise if FSDP shards the model, which then cannot be copied.

    Raises:
        ema_cli.errors.UsageError: FSDP shards the model or a part of it.

    """
    fsdp = _imported()
    if fsdp is None:
        return
    units = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    if any(isinstance(module, units) for module in model.modules()):
        raise UsageError(
            "a model that FSDP shards cannot be copied",
            hint="evaluate it inside: with ema.applied(): - or collect its whole weights there, on every process: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True))",
        )


def _imported() -> ModuleType | None:
    """Return torch's module for FSDP; none if nothing imported it, so that no model can be sharded by it."""
    return sys.modules.get("torch.distributed.fsdp")


def _reshard_flat(unit: Any) -> None:  # noqa: ANN401 - FullyShardedDataParallel, whose parts have no types
    """Free the gathered parameters of a unit of FSDP1, which has no public call for that."""
    handle = unit._handle  # noqa: SLF001
    if handle is None:
        return
    if not handle._use_orig_params:  # noqa: SLF001
        raise UsageError(
            "FullyShardedDataParallel without use_orig_params keeps all parameters of a unit in one without names",
            hint="set use_orig_params=True, or shard with fully_shard (FSDP2)",
        )
    # Until the first forward pass it does not know its root, and has gathered nothing.
    if unit._is_root is not None and handle.uses_sharded_strategy and not handle.needs_unshard():  # noqa: SLF001
        from torch.distributed.fsdp._runtime_utils import _reshard  # noqa: PLC0415 - takes half a second

        _reshard(unit, handle, True)  # noqa: FBT003
