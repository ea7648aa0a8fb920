"""LoRA adapters: factors of any layout, folders as peft writes them, and their updates in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.series import State

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "target_modules": ["q"]}
DOWN, UP = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def factors(seed: int, *, rank: int = 2, inside: int = 5, outside: int = 4, names: Sequence[str] = (DOWN, UP)) -> State:
    """Return random factors of one update: (rank, inside) and (outside, rank)."""
    draw = torch.Generator().manual_seed(seed)
    down, up = names
    return {down: torch.randn(rank, inside, generator=draw), up: torch.randn(outside, rank, generator=draw)}


def write_adapters(run: Path, states: Sequence[State], configs: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write ``checkpoint-100``, ``checkpoint-200``, ... as peft does; ``configs`` changes their configurations."""
    folders = [run / f"checkpoint-{100 * number}" for number in range(1, len(states) + 1)]
    changes = configs or [{}] * len(states)
    for folder, state, change in zip(folders, states, changes, strict=True):
        folder.mkdir(parents=True)
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **change}, indent=2))
    return folders


def product(state: State, names: Sequence[str] = (DOWN, UP)) -> torch.Tensor:
    """Return B A in float64, without the scale."""
    down, up = (state[name].double() for name in names)
    return up @ down
