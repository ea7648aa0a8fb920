"""The averages of a live EMA: one tensor per tensor of the model and average, updated in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn.parameter import is_lazy

from ema_cli.errors import UsageError
from ema_cli.text import quoted
from ema_cli.training.live.model_tensors import local, refuse_incomplete
from ema_cli.weights.methods import Method
from ema_cli.weights.updates import share_of_update

Tensors = Mapping[str, torch.Tensor]

_NARROWEST_BYTES = 4
"""Size of an element below which an average is kept in float32: 1 - d would vanish in 16 bits."""
_RUN_ELEMENTS = 1 << 20
_RUN_ELEMENTS_OF_DEVICES = 1 << 26
"""Elements that are converted at a time: they stay in the cache of a CPU; other devices want few, large calls."""


@dataclass(slots=True, kw_only=True)
class Cohort:
    """Tensors of a model that were first seen at the same step, and their averages, all of one type on one device."""

    first_step: int
    last_step: int
    """Training step of the last update."""
    updates: int
    """How many weights are in the averages, at least 1."""
    averages: tuple[dict[str, torch.Tensor], ...]
    """For each method, the average of each tensor by its name; shapes as in the model."""

    def keep(self, names: Mapping[str, object]) -> bool:
        """Forget the averages of tensors that the model no longer has; return whether there are any left."""
        for name in self.averages[0].keys() - names.keys():
            for average in self.averages:
                del average[name]
        return bool(self.averages[0])

    def fold(self, new: list[torch.Tensor], methods: Sequence[Method], step: int) -> None:
        """Fold the weights of ``step``, ``held`` in the order of the averages, into them."""
        shares = [
            share_of_update(
                method, first_step=self.first_step, last_step=self.last_step, step=step, updates=self.updates
            )
            for method in methods
        ]
        fold_into(self.averages, new, shares)
        self.last_step = step
        self.updates += 1

    def moved(self, device: torch.device) -> Self:
        """Return the same averages on a device."""
        moved = tuple({name: tensor.to(device) for name, tensor in average.items()} for average in self.averages)
        return type(self)(first_step=self.first_step, last_step=self.last_step, updates=self.updates, averages=moved)


def new_cohorts(
    tensors: Tensors, *, averages: int, step: int, dtype: torch.dtype | None, device: torch.device | None
) -> list[Cohort]:
    """Return averages that begin with the current tensors.

    Args:
        tensors: by name, of any shapes.
        averages: how many averages each has.
        step: training step of the tensors.
        dtype: type of the averages; ``None`` for that of the tensor, or float32 if that is wider.
        device: where they are kept; ``None`` for the device of the tensor.

    Raises:
        ema_cli.errors.UsageError: a tensor has no values, or only a partial result on each process.

    """
    refuse_incomplete(tensors)
    for name, tensor in tensors.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise _no_values(name)
    begun = [
        {name: _copy(tensor, dtype=dtype, device=device) for name, tensor in tensors.items()} for _ in range(averages)
    ]
    return cohorts_of(begun, first_step=step, last_step=step, updates=1)


def cohorts_of(averages: Sequence[Tensors], *, first_step: int, last_step: int, updates: int) -> list[Cohort]:
    """Return averages of the same names as cohorts, one for each element type and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in averages[0].items():
        kinds.setdefault((tensor.dtype, tensor.device), []).append(name)
    return [
        Cohort(
            first_step=first_step,
            last_step=last_step,
            updates=updates,
            averages=tuple({name: average[name] for name in names} for average in averages),
        )
        for names in kinds.values()
    ]


@torch.inference_mode(mode=False)
def _copy(tensor: torch.Tensor, *, dtype: torch.dtype | None, device: torch.device | None) -> torch.Tensor:
    return tensor.detach().to(device=device, dtype=average_dtype(tensor.dtype, dtype), copy=True)


def average_dtype(dtype: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Return the type of the average of a tensor: as asked, else its own, or float32 (complex64) if that is wider."""
    if dtype.is_complex:
        return torch.promote_types(dtype, asked or torch.float32)
    return asked or (torch.float32 if dtype.itemsize < _NARROWEST_BYTES else dtype)


@torch.no_grad()
def held(tensors: Tensors, averages: Tensors) -> list[torch.Tensor]:
    """Return what this process holds of the tensors of these averages, in their order.

    Raises:
        ema_cli.errors.UsageError: a tensor is not of the shape and kind of its average, or has no values.

    """
    parts = []
    for name, average in averages.items():
        part, kept = local(tensors[name]), local(average)
        if not fits(part, kept):
            raise _no_values(name) if part.is_meta else _changed(name, part, kept)
        parts.append(part)
    return parts


def fits(part: torch.Tensor, kept: torch.Tensor) -> bool:
    """Return whether what this process holds of a tensor has values, of the shape and kind of what it was before."""
    return part.shape == kept.shape and part.is_complex() == kept.is_complex() and not part.is_meta


@torch.no_grad()
def fold_into(averages: Sequence[Tensors], new: Sequence[torch.Tensor], shares: Sequence[float]) -> None:
    """Set each average E to ``(1 - s) E + s new`` in its own type; what must be converted is converted once for all.

    Args:
        averages: of the same names, one type and device.
        new: what this process holds of the current tensors, in the order of each average.
        shares: s in [0, 1] of each average.

    """
    kept = [[local(tensor) for tensor in average.values()] for average in averages]
    like = kept[0][0]
    if all(tensor.dtype == like.dtype and tensor.device == like.device for tensor in new):
        runs = [slice(None)]
    else:
        most = _RUN_ELEMENTS if like.is_cpu else _RUN_ELEMENTS_OF_DEVICES
        new, kept = _cut(new, most), [_cut(average, most) for average in kept]
        runs = _runs(new, most)
    for run in runs:
        converted = [tensor.to(like) for tensor in new[run]]
        for average, share in zip(kept, shares, strict=True):
            torch._foreach_lerp_(average[run], converted, share)


def _cut(tensors: Sequence[torch.Tensor], most: int) -> list[torch.Tensor]:
    """Return tensors, large ones cut along their first dimension into views of about ``most`` elements."""
    found: list[torch.Tensor] = []
    for tensor in tensors:
        found += tensor.chunk(-(-tensor.numel() // most)) if tensor.numel() > most else [tensor]
    return found


def _runs(tensors: Sequence[torch.Tensor], most: int) -> list[slice]:
    """Return runs of tensors that have about ``most`` elements together."""
    runs, begin, size = [], 0, 0
    for number, tensor in enumerate(tensors, start=1):
        size += tensor.numel()
        if size >= most or number == len(tensors):
            runs.append(slice(begin, number))
            begin, size = number, 0
    return runs


@torch.no_grad()
def copies_of(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return copies of what this process holds of tensors."""
    return {name: local(tensor).detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(targets: Tensors, sources: Tensors) -> None:
    """Copy the tensors of the same names into others, in place, rounded to their element types.

    Raises:
        ema_cli.errors.UsageError: a source is not of the shape and kind of its target; then none was copied.

    """
    parts = held(targets, {name: sources[name] for name in targets})
    if any(part.is_pinned() for part in parts):
        torch.accelerator.synchronize()  # FSDP's copies of offloaded weights to the device may not have ended
    if parts:
        torch._foreach_copy_(parts, [local(sources[name]) for name in targets])


def _changed(name: str, tensor: torch.Tensor, average: torch.Tensor) -> UsageError:
    kinds = " and ".join(f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (tensor, average))
    differing = "shapes" if tensor.shape != average.shape else "types"
    return UsageError(
        f"the model and its average have {quoted(name)} in two {differing} on this process: {kinds}",
        hint="call register() again after a model was resized or sharded anew",
    )


def _no_values(name: str) -> UsageError:
    return UsageError(
        f"{quoted(name)} has no values (a lazy module, or the meta device)",
        hint="load the weights, or run one batch through the model, first",
    )
