"""The averages of a live EMA: one tensor per tensor of the model and average, updated in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ema_cli.training.model_tensors import local
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
            fold_into(average.values(), [current[name] for name in average], share)
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
def fold_into(averages: Iterable[torch.Tensor], current: Iterable[torch.Tensor], share: float) -> None:
    """Set each average to ``(1 - share) average + share current``, in the element type of the average."""
    into = [local(average) for average in averages]
    new = [local(tensor).to(average) for tensor, average in zip(current, into, strict=True)]
    if into:
        torch._foreach_lerp_(into, new, share)


@torch.no_grad()
def copy_into(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    """Copy tensors into others of the same shapes, in place, converted to their element types and devices."""
    into, new = [local(target) for target in targets], [local(source) for source in sources]
    if into:
        torch._foreach_copy_(into, new)
