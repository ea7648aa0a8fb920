"""The averages of a live EMA: one tensor per tensor of the model and average, updated in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ema_cli.errors import UsageError
from ema_cli.text import quoted
from ema_cli.training.model_tensors import local, refuse_partial
from ema_cli.weights.methods import Method
from ema_cli.weights.updates import share_of_update

_NARROWEST_BYTES = 4
"""Size of an element below which an average is kept in float32: 1 - d would vanish in 16 bits."""


@dataclass(slots=True, kw_only=True)
class Cohort:
    """Tensors of a model that were first seen at the same step, and their averages."""

    first_step: int
    last_step: int
    """Training step of the last update."""
    updates: int
    """How many weights are in the averages, at least 1."""
    averages: tuple[dict[str, torch.Tensor], ...]
    """For each method, the average of each tensor by its name; shapes as in the model."""

    def update(self, current: Mapping[str, torch.Tensor], methods: Sequence[Method], step: int) -> None:
        """Fold the weights of ``step`` into the averages; a tensor that the model no longer has is dropped."""
        for method, average in zip(methods, self.averages, strict=True):
            for name in average.keys() - current.keys():
                del average[name]
            share = share_of_update(
                method, first_step=self.first_step, last_step=self.last_step, step=step, updates=self.updates
            )
            fold_into(average, current, share)
        self.last_step = step
        self.updates += 1


def new_cohort(
    tensors: Mapping[str, torch.Tensor],
    *,
    averages: int,
    step: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Cohort:
    """Return averages that begin with the current tensors; in ``dtype``, by default their own or float32."""
    refuse_partial(tensors)
    begun = tuple(
        {name: _copy(tensor, dtype=dtype, device=device) for name, tensor in tensors.items()} for _ in range(averages)
    )
    return Cohort(first_step=step, last_step=step, updates=1, averages=begun)


def _copy(tensor: torch.Tensor, *, dtype: torch.dtype | None, device: torch.device | None) -> torch.Tensor:
    dtype = dtype if dtype is not None and not tensor.is_complex() else _average_dtype(tensor.dtype)
    return tensor.detach().to(device=device, dtype=dtype, copy=True)


def _average_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < _NARROWEST_BYTES and not dtype.is_complex else dtype


@torch.no_grad()
def fold_into(averages: Mapping[str, torch.Tensor], current: Mapping[str, torch.Tensor], share: float) -> None:
    """Set each average to ``(1 - share) average + share current``, in the element type of the average.

    Raises:
        ema_cli.errors.UsageError: a current tensor has another shape on this process than its average.

    """
    into, new = _parts(averages, current)
    if into:
        torch._foreach_lerp_(into, [part.to(average) for part, average in zip(new, into, strict=True)], share)


@torch.no_grad()
def copies_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of what this process holds of tensors."""
    return {name: local(tensor).detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of the same names into others, in place, converted to their element types and devices.

    Raises:
        ema_cli.errors.UsageError: a source has another shape on this process than its target.

    """
    into, new = _parts(targets, sources)
    if into:
        torch._foreach_copy_(into, new)


def _parts(
    targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what this process holds of each target, and of the source of its name."""
    into, new = [local(target) for target in targets.values()], [local(sources[name]) for name in targets]
    for name, target, source in zip(targets, into, new, strict=True):
        if target.shape != source.shape:
            shapes = f"{list(source.shape)} and {list(target.shape)}"
            raise UsageError(
                f"the model and its average have {quoted(name)} in two shapes on this process: {shapes}",
                hint="call register() again after a model was resized or sharded anew",
            )
    return into, new
