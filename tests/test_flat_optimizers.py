"""State of an optimizer with flat names is no weight: not averaged, in whatever format it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.formats.state_dict.flat_optimizers import find_flat_optimizers
from tests.helpers import dcp_makers
from tests.helpers.makers import open_file, save
from tests.helpers.series import State


def filled(*names: str, shape: tuple[int, ...] = (4, 3)) -> State:
    """Return tensors of one shape."""
    return {name: torch.ones(shape) for name in names}


WEIGHTS = ("model.a.weight", "model.b.weight")
STATES: dict[str, State] = {
    "moments of parameters": filled(
        *(f"optimizer.state.{n[6:]}.{m}" for n in WEIGHTS for m in ("exp_avg", "exp_avg_sq"))
    ),
    "numbered": {**filled("optimizer.0.exp_avg", "optimizer.1.exp_avg"), "optimizer.0.step": torch.tensor(3.0)},
    "with master weights": filled("optim.state.model.a.weight.exp_avg", "optim.state.model.a.weight.master"),
    "another name of the state": filled("optimizer_state.a.weight.exp_avg"),
    "moments under any name": filled("solver.0.momentum_buffer", "solver.1.momentum_buffer"),
    "a moment before the name": filled("state.exp_avg.a.weight", "state.exp_avg_sq.a.weight"),
    "two moments without a name": filled(*(f"adam.{m}.{n[6:]}" for n in WEIGHTS for m in "mv")),
    "as JAX calls them": filled(*(f"opt.{m}.{n}" for n in WEIGHTS for m in ("mu", "nu"))),
    "accumulators with the names of the weights": filled(*(f"optimizer.{n[6:]}.accumulator" for n in WEIGHTS)),
    "below the trainer": filled(*(f"trainer.optimizer.{n}.exp_avg" for n in WEIGHTS)),
}
SAVES: dict[str, Callable[[Path, State], Path]] = {
    "torch": lambda folder, state: save(folder / "ckpt_1.pt", state),
    "safetensors": lambda folder, state: saved_as_safetensors(folder / "ckpt_1.safetensors", state),
    "DCP": lambda folder, state: dcp_makers.save(folder / "ckpt_1", state),
}
MODELS: dict[str, State] = {
    "an encoder and a decoder": filled("encoder.a.weight", "decoder.a.weight"),
    "parts m and v that are no pair": filled("net.m.weight", "net.v.weight", "model.a.weight"),
    "parts m and v of other shapes": {**filled("net.m.a.weight"), **filled("net.v.a.weight", shape=(3, 4))},
    "a part with half the name of an optimizer": filled("optimus.a.weight", "model.a.weight"),
    "a trained scheduler": filled("scheduler.net.weight", "model.a.weight"),
    "only moments": filled("optimizer.0.exp_avg"),
    "one name": filled("w"),
}


def saved_as_safetensors(path: Path, state: State) -> Path:
    """Save with the library."""
    save_file(state, path)
    return path


def names_in(path: Path) -> tuple[set[str], set[str]]:
    """Return the names of the tensors that are averaged, and of what is not; nothing is warned about."""
    checkpoint = open_file(path)
    checkpoint.index.close()
    assert checkpoint.dropped == ()
    return {layout.name for layout in checkpoint.index.layouts}, set(checkpoint.ignored)


@pytest.mark.parametrize("form", sorted(SAVES))
@pytest.mark.parametrize("state", sorted(STATES))
def test_state_of_an_optimizer_is_not_averaged(tmp_path: Path, state: str, form: str) -> None:
    """Only the weights are written, and the state is listed as ignored."""
    found, ignored = names_in(SAVES[form](tmp_path, {**filled(*WEIGHTS), **STATES[state]}))
    assert {name.removeprefix("model.") for name in found} == {name.removeprefix("model.") for name in WEIGHTS}
    assert ignored


def test_a_bare_name_in_one_file(tmp_path: Path) -> None:
    """Weights without any prefix beside flat moments."""
    state = {**filled("w"), **filled("optimizer.w.exp_avg", "optimizer.w.exp_avg_sq")}
    assert names_in(saved_as_safetensors(tmp_path / "a.safetensors", state))[0] == {"w"}
    assert names_in(save(tmp_path / "a.pt", state))[0] == {"w"}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_model_keeps_all_its_parts(model: str) -> None:
    """Parts with the same names, or with a name that resembles one of an optimizer, are weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in MODELS[model].items()}
    assert find_flat_optimizers(shapes) == {}


def test_an_index_with_the_state_is_no_missing_tensor(tmp_path: Path) -> None:
    """An index lists the state, too; the shards have it, and it is not missed."""
    state = {**filled(*WEIGHTS), **filled("optimizer.a.weight.exp_avg")}
    saved_as_safetensors(tmp_path / "model-00001-of-00001.safetensors", state)
    index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names_in(tmp_path)[0] == set(WEIGHTS)
