"""Load snapshots of a live EMA: files are untrusted, and must be of this model and these methods."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ema_cli.dtypes import Kind
from ema_cli.errors import InputRefused
from ema_cli.formats.open import open_checkpoint
from ema_cli.records.live_snapshot import LiveSnapshot, read_snapshot
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.storage.strided_read import read_elements
from ema_cli.text import quoted, shortlist
from ema_cli.training.live.ema_state import in_words
from ema_cli.training.live.model_tensors import tensors_of
from ema_cli.training.live.snapshot import refuse_flat_parts, snapshot_paths, state_tensors
from ema_cli.weights.methods import Method


@contextmanager
def opened_snapshots(
    path: str | os.PathLike[str], model: nn.Module, methods: Sequence[Method]
) -> Iterator[Mapping[str, Any]]:
    """Yield the snapshots that ``save_snapshots`` wrote to ``path`` as a state that ``EMA.load_state_dict`` takes.

    Tensors are read when they are asked for, one by one.

    Raises:
        ema_cli.errors.NothingMatched: a file is missing.
        ema_cli.errors.InputRefused: it is damaged, no snapshot, of another model, method or step.
        ema_cli.errors.UsageError: the name does not fit, or the model cannot have snapshots.

    """
    refuse_flat_parts(model)
    with ExitStack() as opened:
        found: list[tuple[Checkpoint, LiveSnapshot]] = []
        for file, method in zip(snapshot_paths(path, methods), methods, strict=True):
            checkpoint = open_checkpoint(file, pool=LayoutPool(), strip_prefix="")
            opened.callback(checkpoint.index.close)
            found.append((checkpoint, _checked(checkpoint, method, model)))
        first = found[0][1]
        for checkpoint, snapshot in found:
            if (snapshot.step, snapshot.averaged) != (first.step, first.averaged):
                raise _refused(checkpoint, f"is of step {snapshot.step:,}, not of step {first.step:,} like the first")
        yield {
            "methods": tuple(method.plain() for method in methods),
            "step": first.step,
            "cohorts": tuple(
                {
                    "names": group.tensors,
                    "first_step": group.first_step,
                    "last_step": group.last_step,
                    "updates": group.updates,
                }
                for group in first.averaged
            ),
            "averages": [_TensorsOfFile(checkpoint) for checkpoint, _ in found],
        }


class _TensorsOfFile(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name, each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._index = checkpoint.index
        self._positions = {layout.name: position for position, layout in enumerate(checkpoint.index.layouts)}

    def __getitem__(self, name: str) -> torch.Tensor:
        extent = self._index.extent(self._positions[name])
        tensor = torch.empty(extent.layout.shape, dtype=getattr(torch, extent.layout.dtype.torch_name))
        read_elements(extent, 0, tensor.view(-1).view(torch.uint8).numpy())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def _checked(checkpoint: Checkpoint, method: Method, model: nn.Module) -> LiveSnapshot:
    """Return what a snapshot states, if it is of this method and model."""
    snapshot = read_snapshot(checkpoint.path, checkpoint.metadata)
    if not snapshot.method.same_as(method):
        made, own = (in_words([one.plain()]) for one in (snapshot.method, method))
        raise _refused(checkpoint, f"was made with {made}, and this EMA has {own}")
    layouts = {layout.name: layout for layout in checkpoint.index.layouts}
    state = state_tensors(model)
    differences = {"has no": state.keys() - layouts.keys(), "has, unlike the model,": layouts.keys() - state.keys()}
    for words, names in differences.items():
        if names:
            raise _refused(checkpoint, f"is of another model: it {words} {shortlist(map(quoted, sorted(names)))}")
    tensors = tensors_of(model)
    for name in (name for group in snapshot.averaged for name in group.tensors):
        if name not in tensors or name not in layouts:
            raise _refused(checkpoint, f"has an average of {quoted(name)}, which the model does not have")
        _check_tensor(checkpoint, layouts[name], tensors[name])
    return snapshot


def _check_tensor(checkpoint: Checkpoint, layout: TensorLayout, own: torch.Tensor) -> None:
    if layout.shape != tuple(own.shape):
        shapes = f"{list(layout.shape)}, and {list(own.shape)} in the model"
        raise _refused(checkpoint, f"is of another model: {quoted(layout.name)} has the shape {shapes}")
    if not layout.dtype.averaged or (layout.dtype.kind is Kind.COMPLEX) != own.is_complex():
        types = f"{layout.dtype.torch_name}, and {str(own.dtype).removeprefix('torch.')} in the model"
        raise _refused(checkpoint, f"is of another model: {quoted(layout.name)} has the type {types}")


def _refused(checkpoint: Checkpoint, reason: str) -> InputRefused:
    return InputRefused(f"{quoted(str(checkpoint.path))} {reason}")
