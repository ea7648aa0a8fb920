"""Checkpoints that DeepSpeed saved with every stage of ZeRO: read as its own script joins them, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.makers import expected, open_file, read_all, read_file
from tests.helpers.program import Run, forked
from tests.helpers.series import load
from tests.interop.judge import assert_fold, average
from tests.interop.ranks_of_zero import RANKS, SETTINGS, STEPS

ROOT = Path(__file__).parent.parent.parent
JOINED = [name for name in SETTINGS if name != "stage_1_bf16"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that three processes saved, and what DeepSpeed's script made of them."""
    folder = tmp_path_factory.mktemp("zero")
    command = [sys.executable, "-m", "tests.interop.ranks_of_zero", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def resumed(saved: Path) -> Path:
    """The same files, with averages that were written and loaded again."""
    names = [name for name in SETTINGS if name.startswith("stage_3")]
    for name in names:
        run = forked(saved)
        average(run, saved / name, "--format", "same", "-o", f"averaged_{name}/")
    command = [sys.executable, "-m", "tests.interop.ranks_of_zero", str(saved), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return saved


def key_of(name: str) -> str | tuple[str, ...]:
    """Return the key of the float32 weights: the default of stage 3."""
    return () if name.startswith("stage_3") else "fp32"


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("step", STEPS)
def test_the_weights_are_those_of_the_script(name: str, step: int, saved: Path) -> None:
    """Parameters, buffers, tied and frozen parameters; of stage 1 the script leaves out the frozen ones."""
    joined = torch.load(saved / f"{name}_{step}.pt", weights_only=True)
    found = open_file(saved / name / f"global_step{step}", key=key_of(name))
    assert found.format == f"DeepSpeed ZeRO-{name.split('_')[1]}, {RANKS} ranks"
    assert found.steps[0].value == step
    assert found.ties == {"head.weight": "embedding.weight"}
    assert not found.unreadable
    read = read_all(found)
    assert read.keys() - joined.keys() == ({"frozen.weight"} if name == "stage_1" else set())
    assert {key: read[key] for key in joined} == expected(joined)


@pytest.mark.parametrize("step", STEPS)
def test_the_optimizer_of_bfloat16(step: int, saved: Path) -> None:
    """The script refuses its states, which do not state the stage; the model has the same weights, rounded."""
    folder = saved / "stage_1_bf16" / f"global_step{step}"
    model = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    found = read_file(folder, key="fp32")
    assert found.keys() == model.keys()
    assert read_file(folder) == expected(model)
    for name, (_, shape, raw) in found.items():
        if model[name].dtype is torch.bfloat16 and name != "frozen.weight":
            whole = torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)
            assert torch.equal(whole.bfloat16(), model[name]), name
            assert not torch.equal(whole, model[name].float()), name


@pytest.mark.parametrize("name", ["stage_3", "stage_2"])
def test_a_run_is_averaged(name: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The program finds both checkpoints of a run; the average is that of the joined weights."""
    key = () if name == "stage_3" else ("--key", "fp32")
    average(ema_avg, saved / name, *key, "-o", "ema.safetensors")
    joined = [torch.load(saved / f"{name}_{step}.pt", weights_only=True) for step in STEPS]
    found = load(tmp_path / "ema.safetensors")
    tied = {"head.weight", "embedding.weight"} - found.keys()
    assert_fold(found, [{key: value for key, value in state.items() if key not in tied} for state in joined])
    assert ema_avg("verify", "ema.safetensors").returncode == 0


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("stage_3")])
def test_training_continues_from_the_average(name: str, resumed: Path, tmp_path: Path, ema_avg: Run) -> None:
    """DeepSpeed loads a copy with the averages on every rank: weights, model and buffers; the moments are the last."""
    average(ema_avg, resumed / name, "-o", "ema.safetensors")
    averages = load(tmp_path / "ema.safetensors")
    for rank in range(RANKS):
        found = torch.load(resumed / f"resumed_{name}_{rank}.pt", weights_only=True)
        assert found["steps"] == STEPS[-1]
        assert all(torch.equal(tensor, averages[key]) for key, tensor in found["weights"].items())
        dtype = found["model"]["scale"].dtype
        assert all(torch.equal(tensor, averages[key].to(dtype)) for key, tensor in found["model"].items())
        assert all(torch.equal(found["buffers"][key], averages[key]) for key in ("seen", "count"))
        assert all(moment.abs().max() > 0 for moment in found["moments"].values())
