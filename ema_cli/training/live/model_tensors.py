"""The tensors of a model by the names that its checkpoints use, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, cast

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.formats.state_dict.prefixes import without_module_wrappers
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.text import quoted
from ema_cli.training.live.fsdp import put_shards_back

BufferRule = Literal["copy", "average"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, DataParallel, DistributedDataParallel and DeepSpeed's engine."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or _is_engine(model):
            model = cast("nn.Module", model.module)
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]  # noqa: SLF001 - what torch.compile names it
        else:
            return model


def _is_engine(model: nn.Module) -> bool:
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter once, tied ones under their first name; of a sharded one the shard of this process."""
    put_shards_back(model)
    return {without_module_wrappers(name): parameter for name, parameter in unwrapped(model).named_parameters()}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers, each once."""
    buffers = unwrapped(model).named_buffers()
    return parameters_of(model) | {without_module_wrappers(name): buffer for name, buffer in buffers}


def averaged_tensors(
    model: nn.Module, known: Collection[str], *, buffers: BufferRule, batchnorm: BufferRule
) -> dict[str, torch.Tensor]:
    """Return the tensors to average: parameters that require a gradient, or are ``known``, and the chosen buffers.

    Raises:
        ema_cli.errors.UsageError: there are none.

    """
    parameters = parameters_of(model).items()
    found = {name: tensor for name, tensor in parameters if tensor.requires_grad or name in known}
    if not found:
        raise UsageError(
            "the model has no parameter that requires a gradient, so there is nothing to average",
            hint="call register() or update() when the parameters to train are there and not frozen",
        )
    return found | dict(_averaged_buffers(model, buffers=buffers, batchnorm=batchnorm))


def _averaged_buffers(
    model: nn.Module, *, buffers: BufferRule, batchnorm: BufferRule
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the floating-point buffers that are averaged: BatchNorm statistics by their own rule."""
    for name, buffer in unwrapped(model).named_buffers():
        rule = batchnorm if is_batch_norm_statistic(name) else buffers
        if rule == "average" and (buffer.is_floating_point() or buffer.is_complex()):
            yield without_module_wrappers(name), buffer


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a distributed tensor that this process holds, without a copy; other tensors as they are.

    To be called without gradients: only then a distributed tensor returns its part itself.
    """
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def as_sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor sharded as another is, each process keeping its part without communication."""
    if not hasattr(like, "to_local") or hasattr(tensor, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - takes half a second

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def refuse_incomplete(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise if this process holds no dense weights of a tensor: only a summand of them, or a piece without a shape.

    Raises:
        ema_cli.errors.UsageError: so it is.

    """
    for name, tensor in tensors.items():
        if any(placement.is_partial() for placement in getattr(tensor, "placements", ())):
            raise UsageError(
                f"{quoted(name)} is not a weight, but a partial result on each process (DTensor placement Partial)",
                hint="redistribute it to Shard or Replicate",
            )
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise UsageError(f"{quoted(name)} is sparse or nested, which cannot be averaged", hint="make it dense")
        if hasattr(tensor, "ds_id"):
            raise UsageError(
                f"DeepSpeed ZeRO stage 3 holds {quoted(name)} in pieces, which cannot be averaged during training",
                hint="average saved checkpoints, or train with stage 2 or FSDP2",
            )
