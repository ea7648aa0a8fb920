"""Sharded checkpoints of real processes: torch.distributed.checkpoint, FSDP2, accelerate, parts of safetensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.helpers.program import Run
from tests.helpers.series import State, load
from tests.interop.judge import assert_fold, average, disturb, names_in
from tests.interop.ranks import STEPS, Net

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that two processes saved during training."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.interop.ranks", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def kept(folder: Path) -> list[State]:
    """Return the whole tensors that the processes stored, oldest first."""
    return [torch.load(folder / f"whole_{step}.pt", weights_only=True) for step in STEPS]


@pytest.mark.parametrize("way", ["run", "async"])
def test_an_fsdp2_run_is_averaged(way: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """A folder of sharded checkpoints, saved at once or in the background, gives the average of the whole tensors."""
    report = json.loads(average(ema_avg, saved / "fsdp2" / way, "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    found = load(tmp_path / "ema.safetensors")
    assert_fold(found, kept(saved / "fsdp2"))
    Net().load_state_dict(found)


def test_what_torch_loads_is_what_is_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The judge is ``dcp.load`` in one process, which puts the shards together."""
    states = []
    for step in STEPS:
        weights = Net().state_dict()
        state: dict[str, Any] = {"model": {name: torch.zeros_like(tensor) for name, tensor in weights.items()}}
        dcp.load(state, checkpoint_id=saved / "fsdp2" / "run" / f"step-{step}", no_dist=True)
        states.append(state["model"])
    average(ema_avg, saved / "fsdp2" / "run", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), states)


def test_checkpoints_of_accelerate_are_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """In ``checkpoint-N`` the model is ``pytorch_model_fsdp_0``; the optimizer, which is as large, is not read."""
    assert names_in(saved / "accelerate" / "checkpoint-9") == {"pytorch_model_fsdp_0", "optimizer_0"}
    report = json.loads(average(ema_avg, saved / "accelerate", "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    assert_fold(load(tmp_path / "ema.safetensors"), kept(saved / "fsdp2"))


def test_model_folders_of_accelerate_can_be_named(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The path of each checkpoint's sharded model can be given directly."""
    folders = [saved / "accelerate" / f"checkpoint-{step}" / "pytorch_model_fsdp_0" for step in reversed(STEPS)]
    average(ema_avg, *folders, "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), kept(saved / "fsdp2"))


def test_every_placement_is_put_together(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Rows, columns, the middle dimension, copies, transposed tensors, single numbers; bfloat16 and integers."""
    average(ema_avg, saved / "mixed" / "run", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), kept(saved / "mixed"))


def test_parts_in_safetensors_are_put_together(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The hub's writer leaves each rank's part of a tensor in a file of its own, until it is consolidated."""
    shards = names_in(saved / "hub" / "step-9")
    assert len([name for name in shards if name.startswith("shard-")]) == 2
    average(ema_avg, saved / "hub", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), kept(saved / "mixed"))


def test_wrapped_models_are_named_as_the_model_inside(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """``torch.compile`` and DistributedDataParallel put prefixes on every name; the average loads without them."""
    average(ema_avg, saved / "wrapped" / "run", "-o", "ema.safetensors")
    found = load(tmp_path / "ema.safetensors")
    assert_fold(found, kept(saved / "wrapped"))
    Net().load_state_dict(found)


def test_folders_and_files_of_the_same_weights_are_equal(saved: Path, ema_avg: Run) -> None:
    """A sharded checkpoint and one file with the same tensors are compared tensor by tensor, and are the same."""
    whole = saved / "fsdp2" / "whole_9.pt"
    assert ema_avg("diff", saved / "fsdp2" / "run" / "step-9", whole).returncode == 0
    assert ema_avg("diff", saved / "accelerate" / "checkpoint-10", whole).returncode == 1


def test_states_of_accelerate_in_one_process(ema_avg: Run, tmp_path: Path) -> None:
    """``save_state`` names its folders ``checkpoint_0``, ``checkpoint_1``, ... and stores the optimizer in them too."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    project = ProjectConfiguration(project_dir=str(tmp_path / "project"), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = Net()
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    states = []
    for _ in range(3):
        accelerator.backward(prepared(torch.randn(8, 7)).pow(2).sum())
        optimizer.step()
        accelerator.save_state()
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    average(ema_avg, tmp_path / "project" / "checkpoints", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), states)


def test_shards_of_save_model_load_with_accelerate(ema_avg: Run, tmp_path: Path) -> None:
    """``save_model`` writes shards, and ``load_checkpoint_in_model`` reads the sharded average."""
    from accelerate import Accelerator, load_checkpoint_in_model

    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 20))
    states = []
    for number in (1, 2, 3):
        disturb(model, number)
        Accelerator(cpu=True).save_model(model, tmp_path / "run" / f"step_{number}", max_shard_size="3KB")
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert "model.safetensors.index.json" in names_in(tmp_path / "run" / "step_1")
    average(ema_avg, "run", "-o", "averaged/", "--max-shard-size", "3KB")
    load_checkpoint_in_model(model, str(tmp_path / "averaged"))
    assert_fold(model.state_dict(), states)


def test_a_checkpoint_of_one_process(ema_avg: Run, tmp_path: Path) -> None:
    """Without a process group ``dcp.save`` writes the same kind of folder."""
    model = Net()
    states = []
    for number in (1, 2, 3):
        disturb(model, number)
        state: dict[str, Any] = {"model": model.state_dict(), "extra": {"note": "ä", "step": number}}
        dcp.save(state, checkpoint_id=tmp_path / "run" / f"step_{number}", no_dist=True)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    average(ema_avg, "run", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), states)
