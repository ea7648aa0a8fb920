"""Checkpoints of Megatron Core, split by tensor parallelism: they are folders of torch.distributed.checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.program import Run
from tests.helpers.series import load
from tests.interop.judge import assert_fold, average
from tests.interop.ranks_of_megatron import STEPS

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that two processes saved of a model."""
    folder = tmp_path_factory.mktemp("megatron")
    command = [sys.executable, "-m", "tests.interop.ranks_of_megatron", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_of_megatron_core_is_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The joined halves of each tensor, and the layers stored in one tensor, are those that Megatron itself loads."""
    report = json.loads(average(ema_avg, saved / "run", "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    states = [torch.load(saved / f"whole_{step}.pt", weights_only=True) for step in STEPS]
    found = load(tmp_path / "ema.safetensors")
    assert_fold(found, states)
    assert found["decoder.layers.mlp.linear_fc1.weight"].shape == (2, 64, 16)


@pytest.mark.parametrize("way", ["torch", "kept"])
def test_the_torch_format_of_several_ranks_is_refused(way: str, saved: Path, ema_avg: Run) -> None:
    """The files do not define the whole tensors: the message says so, and the hint has the converters."""
    done = ema_avg(saved / way, "--decay", "0.5")
    assert done.returncode == 3
    assert "do not state how they fit together" in done.stderr
    assert f"--load {saved / way} --ckpt-step {STEPS[0]} --ckpt-convert-format torch_dist" in done.stderr
    assert "tools/checkpoint/convert.py --model-type GPT" in done.stderr


def test_the_torch_format_has_no_attributes_of_the_split(saved: Path) -> None:
    """The state dict that Megatron saves has detached tensors: what the parameters know of their split is lost."""
    names = {}
    for way in ("torch", "kept"):
        file = saved / way / "iter_0000900" / "mp_rank_00" / "model_optim_rng.pt"
        state = torch.load(file, weights_only=False)["model"]
        names[way] = {name for name, value in state.items() if hasattr(value, "partition_dim")}
    assert names["kept"]
    assert not names["torch"]
