"""Snapshots of a live EMA: saved as checkpoints of the model, and loaded to continue the average."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.formats.state_dict.prefixes import without_module_wrappers
from ema_cli.naming import OUTPUT_FIELDS, fill_output_name
from ema_cli.records.live_snapshot import AveragedTensors, LiveSnapshot
from ema_cli.storage.locations import expanded, locate
from ema_cli.text import quoted, shortlist
from ema_cli.training.live.averages import Cohort
from ema_cli.training.live.fsdp import own_part
from ema_cli.training.live.model_tensors import parameters_of, unwrapped
from ema_cli.training.live.snapshot_file import write_snapshot
from ema_cli.weights.methods import Method


def save_snapshots(
    path: str | os.PathLike[str],
    model: nn.Module,
    methods: Mapping[int, Method],
    cohorts: Sequence[Cohort],
    *,
    step: int,
    force: bool,
) -> tuple[Path, ...]:
    """Write one file for each of the averages ``methods``, by number; return their paths.

    A file has every tensor of the model's ``state_dict``: the averages in their own types, the others as they are in
    the model now. What is no tensor (``extra_state``) is left out.

    Raises:
        ema_cli.errors.UsageError: the name is no file name for all of them, or the model cannot have snapshots.
        ema_cli.errors.OutputError: a file cannot be written.

    """
    paths = snapshot_paths(path, list(methods.values()))
    refuse_flat_parts(model)
    if _is_replica(model):
        return paths
    for target, (number, method) in zip(paths, methods.items(), strict=True):
        averaged = {name: tensor for cohort in cohorts for name, tensor in cohort.averages[number].items()}
        tensors = _tensors(model, averaged)
        snapshot = LiveSnapshot(method=method, step=step, averaged=tuple(_averaged(cohorts, tensors)))
        write_snapshot(target, tensors, snapshot.metadata(), force=force)
    return paths


def refuse_flat_parts(model: nn.Module) -> None:
    """Raise if FullyShardedDataParallel shards the model: a process then holds no part of a tensor with a shape.

    Raises:
        ema_cli.errors.UsageError: it does.

    """
    if own_part(model) is not None:
        raise UsageError(
            "a model under FullyShardedDataParallel has no snapshots",
            hint="shard it with fully_shard (FSDP2); or save the state_dict of the EMA by every process",
        )


def snapshot_paths(path: str | os.PathLike[str], methods: Sequence[Method]) -> tuple[Path, ...]:
    """Return the file of each average: the name with its fields filled in.

    Raises:
        ema_cli.errors.UsageError: it is no local .safetensors file, has an unknown field, or the same name for two.

    """
    template = expanded(os.fspath(path))
    if not isinstance(locate(template), Path):
        raise UsageError(f"the snapshot {quoted(template)} is not a local file", hint="save it, then copy it")
    if not template.endswith(".safetensors"):
        raise UsageError(f"the snapshot {quoted(template)} must end in .safetensors")
    names = [fill_output_name(template, method.name_fields()) for method in methods]
    field = next((found for name in names for found in re.findall(r"\{\w*\}", name)), None)
    if field is not None:
        known = ", ".join(f"{{{known}}}" for known in OUTPUT_FIELDS)
        raise UsageError(f"the snapshot {quoted(template)}: there is no {field}", hint=f"use {known}")
    if len(set(names)) != len(names):
        raise UsageError(
            f"several averages would be saved to {quoted(names[0])}",
            hint="put {decay} or {label} into the name, or save one with average=0",
        )
    return tuple(map(Path, names))


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the model's ``state_dict``, under the names of the model without wrappers."""
    state = unwrapped(model).state_dict()
    return {without_module_wrappers(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _tensors(model: nn.Module, averaged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors to write: of each name the average, if it has one, also if it is tied to another name.

    Raises:
        ema_cli.errors.UsageError: the model's ``state_dict`` lacks a parameter, or has it under another name.

    """
    inner, state = unwrapped(model), state_tensors(model)
    parameters = inner.named_parameters(remove_duplicate=False)
    buffers = inner.named_buffers(remove_duplicate=False)
    first: dict[int, str] = {}
    names = {
        without_module_wrappers(name): first.setdefault(id(tensor), without_module_wrappers(name))
        for name, tensor in (*parameters, *buffers)
    }
    if lost := [quoted(name) for name in parameters_of(model) if name in averaged and name not in state]:
        raise UsageError(
            f"the model's state_dict has no {shortlist(lost)}, so the average cannot be saved under this name",
            hint="save ema.state_dict() by torch.save",
        )
    return {name: averaged.get(names.get(name, name), tensor) for name, tensor in state.items()}


def _averaged(cohorts: Sequence[Cohort], written: Mapping[str, torch.Tensor]) -> Iterator[AveragedTensors]:
    """Yield the tensors in the file that are averages, those of equal steps together, of whatever type or device."""
    groups: dict[tuple[int, int, int], list[str]] = {}
    for cohort in cohorts:
        names = groups.setdefault((cohort.first_step, cohort.last_step, cohort.updates), [])
        names += [name for name in cohort.averages[0] if name in written]
    for (first, last, updates), names in sorted(groups.items()):
        if names:
            yield AveragedTensors(first_step=first, last_step=last, updates=updates, tensors=tuple(sorted(names)))


def _is_replica(model: nn.Module) -> bool:
    """Whether the model is a copy that DistributedDataParallel keeps equal to that of the first process."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return torch.distributed.get_rank(model.process_group) > 0
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return False
        model = inner
