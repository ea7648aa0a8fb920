"""Checkpoints of DeepSpeed: one file has the model up to ZeRO stage 2; at stage 3 the files of all ranks have it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.live_training import weights_of
from tests.helpers.program import Run
from tests.helpers.series import State, load
from tests.interop.judge import DECAY, assert_fold, average
from tests.interop.ranks_of_deepspeed import STAGES, STEPS, network

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that two processes saved during training with each stage of ZeRO."""
    folder = tmp_path_factory.mktemp("deepspeed")
    command = [sys.executable, "-m", "tests.interop.ranks_of_deepspeed", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def kept(folder: Path) -> list[State]:
    """Return the whole tensors that the processes stored, oldest first."""
    return [torch.load(folder / f"whole_{step}.pt", weights_only=True) for step in STEPS]


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_run_of_deepspeed_is_averaged(stage: int, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The model is read, in bfloat16 as it was trained; the optimizer's files are not."""
    folder = saved / f"stage_{stage}"
    average(ema_avg, folder / "run", "-o", "ema.safetensors")
    found = load(tmp_path / "ema.safetensors")
    assert_fold(found, kept(folder))
    network().load_state_dict(found)


def test_stage_3_is_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Parameters in pieces are read from the files of all ranks, in float32, with the buffers of the model."""
    folder = saved / "stage_3"
    average(ema_avg, folder / "run", "--dtype", "float32", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), kept(folder))


def test_what_the_hint_joins_is_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Without the files of the optimizer there are no weights; the hint names the command that joins them elsewhere."""
    run = saved / "stage_3" / "run"
    for step in STEPS:
        copy = tmp_path / "copy" / f"global_step{step}"
        shutil.copytree(run / f"global_step{step}", copy, ignore=shutil.ignore_patterns("*optim_states.pt"))
        refused = ema_avg(copy, "--decay", DECAY, "-o", "ema.safetensors")
        assert refused.returncode == 3
        assert not (tmp_path / "ema.safetensors").exists()
        hint = re.search(r"python (-m deepspeed.*)", refused.stderr)
        assert hint, refused.stderr
        words = shlex.split(hint[1].replace(str(tmp_path / "copy"), str(run)))
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    average(ema_avg, *(run / f"global_step{step}_joined" for step in STEPS), "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), kept(saved / "stage_3"))


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_live_average_of_deepspeed(stage: int, saved: Path) -> None:
    """Up to stage 2 a live EMA of the engine averages the model's bfloat16 tensors in float32, by the model's names."""
    folder = saved / f"stage_{stage}"
    average = torch.load(folder / "live.pt", weights_only=True)["average"]
    first, second = kept(folder)
    assert average.keys() == weights_of(network()).keys()
    for name, tensor in average.items():
        assert torch.equal(tensor, torch.lerp(first[name].float(), second[name].float(), 0.5))


def test_stage_3_is_not_averaged_live(saved: Path) -> None:
    """Parameters in pieces are refused, instead of averaging nothing."""
    assert "ZeRO stage 3 holds" in torch.load(saved / "stage_3" / "live.pt", weights_only=True)["refused"]
