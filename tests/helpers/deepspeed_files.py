"""Checkpoints of DeepSpeed made by hand: the same files and pickles as its engine writes, for any number of ranks."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PADDING = 7.0
"""Fills the parts of parameters at stage 3."""
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model in training: float32 weights by parameter group, and everything beside them."""

    groups: Sequence[Weights]
    buffers: Weights = field(default_factory=dict)
    frozen: Weights = field(default_factory=dict)
    """Parameters that are not trained."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Second names of parameters."""
    step: int = 100
    dtype: torch.dtype = torch.bfloat16
    """Of the model."""
    client: Mapping[str, object] = field(default_factory=dict)
    """What the user stores beside the model."""

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The trained parameters of all groups."""
        return {name: tensor for group in self.groups for name, tensor in group.items()}

    @property
    def whole(self) -> dict[str, torch.Tensor]:
        """All tensors that a reader must find, by name."""
        found = {**self.buffers, **{name: tensor.to(self.dtype) for name, tensor in self.frozen.items()}}
        found |= self.trained
        return found | {name: found[of] for name, of in self.shared.items()}


def write_stage_3(folder: Path, training: Training, ranks: int, *, per_flat: int = 0) -> Path:
    """Write a checkpoint of stage 3; ``per_flat`` is the number of parameters in a flat tensor, 0 for a group."""
    folder.mkdir(parents=True, exist_ok=True)
    flats = [
        _pairs(group)[first : first + (per_flat or len(group))]
        for group in training.groups
        for first in range(0, len(group), per_flat or max(1, len(group)))
    ]
    placeholders = {name: torch.empty(0, dtype=training.dtype) for name in training.trained}
    empty = {name: torch.empty(0, dtype=training.dtype) for name in (*training.frozen, *training.shared)}
    for rank in range(ranks):
        fragments = {name: _part(tensor.to(training.dtype), rank, ranks) for name, tensor in training.frozen.items()}
        states = _model_states(training, {**placeholders, **empty, **training.buffers}, fragments, ranks)
        torch.save(states, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flat = [torch.cat([_part(tensor, rank, ranks) for _, tensor in pairs]) for pairs in flats if pairs]
        optimizer = {
            "zero_stage": 3,
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": ranks,
            "optimizer_state_dict": _adam(flat, training.step),
            "fp32_flat_groups": flat,
        }
        _save_optimizer(folder, optimizer, rank, "zero")
    return folder


def write_stage_2(
    folder: Path,
    training: Training,
    ranks: int,
    *,
    stage: int = 2,
    kind: str = "bf16_zero",
    alignment: int = 1,
    padded: bool = False,
) -> Path:
    """Write a checkpoint of stage 1 or 2.

    Args:
        folder: of the checkpoint.
        training: to save.
        ranks: number of them.
        stage: of ZeRO; 0 is the optimizer of bfloat16, which does not state it.
        kind: the beginning of the names of the optimizer states.
        alignment: elements to which every parameter is aligned.
        padded: whether the padding at the end is saved too, as the optimizer of bfloat16 does.

    """
    folder.mkdir(parents=True, exist_ok=True)
    model = {name: tensor.to(training.dtype) for name, tensor in {**training.trained, **training.frozen}.items()}
    model |= training.buffers
    model |= {name: model[of] for name, of in training.shared.items()}
    frozen = {name: model[name] for name in training.frozen}
    torch.save(_model_states(training, model, frozen, ranks), folder / "mp_rank_00_model_states.pt")
    paddings = [[-tensor.numel() % alignment for tensor in group.values()] for group in training.groups]
    vectors = [_vector(group, own, ranks) for group, own in zip(training.groups, paddings, strict=True)]
    for rank in range(ranks):
        parts = [_partition(vector, length, rank, ranks, padded=padded) for vector, length in vectors]
        optimizer: dict[str, Any] = {
            "base_optimizer_state": _adam(parts, training.step),
            "single_partition_of_fp32_groups": parts,
            "partition_count": [ranks] * len(parts),
            "ds_version": "0.19.8",
        }
        if stage:
            optimizer["zero_stage"] = stage
        if alignment > 1:
            optimizer["param_alignment_paddings"] = paddings
        _save_optimizer(folder, optimizer, rank, kind)
    return folder


def _pairs(group: Weights) -> list[tuple[str, torch.Tensor]]:
    return list(group.items())


def _part(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Return the part of a rank: equal lengths, the last parts padded."""
    length = math.ceil(tensor.numel() / ranks)
    padded = torch.full((length * ranks,), PADDING, dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor.reshape(-1)
    return padded[rank * length : (rank + 1) * length].clone()


def _vector(group: Weights, paddings: Sequence[int], ranks: int) -> tuple[torch.Tensor, int]:
    """Return the aligned vector of a group, and its length without the padding at its end."""
    pieces = [
        piece
        for tensor, padding in zip(group.values(), paddings, strict=True)
        for piece in (tensor.reshape(-1), torch.full((padding,), 9.0))
    ]
    vector = torch.cat(pieces)
    end = torch.full((-vector.numel() % (2 * ranks),), 5.0)
    return torch.cat([vector, end]), vector.numel()


def _partition(vector: torch.Tensor, length: int, rank: int, ranks: int, *, padded: bool) -> torch.Tensor:
    size = vector.numel() // ranks
    end = (rank + 1) * size if padded else max(rank * size, min((rank + 1) * size, length))
    return vector[rank * size : (rank + 1) * size].clone()[: end - rank * size]


def _adam(parts: Sequence[torch.Tensor], step: int) -> dict[str, object]:
    moments = {
        number: {"step": torch.tensor(float(step)), "exp_avg": torch.zeros_like(part)}
        for number, part in enumerate(parts)
    }
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": [number]} for number in moments]}


def _model_states(training: Training, module: Weights, fragments: Weights, ranks: int) -> dict[str, object]:
    frozen = OrderedDict((name, tensor.shape) for name, tensor in training.frozen.items())
    return {
        "module": OrderedDict(module),
        "buffer_names": list(training.buffers),
        "optimizer": None,
        "param_shapes": [
            OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in training.groups
        ],
        "frozen_param_shapes": frozen,
        "shared_params": dict(training.shared),
        "frozen_param_fragments": OrderedDict(fragments),
        "lr_scheduler": None,
        "skipped_steps": 0,
        "global_steps": training.step,
        "global_samples": 8 * training.step,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 3}},
        "ds_version": "0.19.8",
        **training.client,
    }


def _save_optimizer(folder: Path, optimizer: dict[str, Any], rank: int, kind: str) -> None:
    states = {"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.19.8"}
    torch.save(states, folder / f"{kind}_pp_rank_{rank}_mp_rank_00_optim_states.pt")
