"""Folders of checkpoints as trainers and libraries write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.series import State

CONFIG = {"model_type": "mine", "torch_dtype": "float32", "text_config": {"torch_dtype": "float32"}, "eps": 1e-05}
STEMS = {"safetensors": "model", "bin": "pytorch_model"}


def model_folders(run: Path, made: Sequence[State], **files: bytes) -> list[Path]:
    """Write checkpoint folders as Hugging Face's trainer does: the weights and other files."""
    folders = [run / f"checkpoint-{100 * number}" for number in range(1, len(made) + 1)]
    for folder, state in zip(folders, made, strict=True):
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
        (folder / "tokenizer.json").write_bytes(b"{ }\n\n")
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
    return folders


def write_shards(
    folder: Path, state: State, *, count: int = 3, suffix: str = "safetensors", index: bool = True
) -> Path:
    """Write a model in shards as ``save_pretrained`` does; return the path of the index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, names, weight_map = STEMS[suffix], list(state), dict[str, str]()
    for number in range(count):
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"
        part = {name: state[name] for name in names[number::count]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
    if index:
        write_index(folder / f"{stem}.{suffix}.index.json", weight_map)
    return folder / f"{stem}.{suffix}.index.json"


def write_index(path: Path, weight_map: Mapping[str, object]) -> Path:
    """Write the index of shards."""
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2))
    return path


def write_folder(folder: Path, step: int | None = None, *, value: float = 1.0, file: str = "model.safetensors") -> Path:
    """Write a checkpoint folder as a trainer does, with the step inside."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2,), value)}, folder / file)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder
