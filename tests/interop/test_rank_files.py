"""Checkpoints of which every rank saved its own part with ``torch.save``: FSDP1, FSDP2, tensor parallelism, verl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.helpers.program import Run
from tests.helpers.series import State, load
from tests.interop.judge import assert_fold, average
from tests.interop.ranks_of_rank_files import RANKS, STEPS, RowNet

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that four processes saved."""
    folder = tmp_path_factory.mktemp("rank-files")
    command = [sys.executable, "-m", "tests.interop.ranks_of_rank_files", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def wholes(saved: Path) -> list[State]:
    """Return the whole tensors, oldest first."""
    return [torch.load(saved / f"whole_{step}.pt", weights_only=True) for step in STEPS]


@pytest.mark.parametrize(
    "way", ["sharded", "hybrid", "both", "placed", "flat", "flat_hybrid", "copied", "of_old_torch"]
)
def test_the_parts_of_all_ranks_are_put_together(way: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The average is that of the tensors before they were sharded, to the last bit, and it loads."""
    report = json.loads(average(ema_avg, saved / way, "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    found = load(tmp_path / "ema.safetensors")
    assert_fold(found, wholes(saved))
    RowNet(0).load_state_dict(found)


def test_a_run_of_verl_is_averaged(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Of the actor the model is read; its optimizer, random states and the position in the data are not."""
    report = json.loads(average(ema_avg, saved / "verl", "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    assert_fold(load(tmp_path / "ema.safetensors"), wholes(saved))


@pytest.mark.parametrize("names", ["run", "run/step_*_rank_0.pt", "run/*"])
def test_the_files_of_all_steps_may_be_in_one_folder(names: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The file of rank 0 stands for its checkpoint; those of the other ranks are read with it."""
    (tmp_path / "run").mkdir()
    for step in STEPS:
        for rank in range(RANKS):
            name = f"step_{step}_rank_{rank}.pt"
            shutil.copy(saved / "sharded" / f"step-{step}" / f"rank_{rank}.pt", tmp_path / "run" / name)
    done = average(ema_avg, names, "-o", "ema.safetensors", "--json")
    report = json.loads(done.stdout)
    assert [entry["path"].rpartition("/")[2] for entry in report["inputs"]] == [f"step_{s}_rank_0.pt" for s in STEPS]
    assert "unusable-left-out" not in {warning["code"] for warning in report["warnings"]}
    assert_fold(load(tmp_path / "ema.safetensors"), wholes(saved))
    assert ema_avg("verify", "ema.safetensors").returncode == 0
    (tmp_path / "run" / "step_100_rank_2.pt").write_bytes(b"other")
    assert ema_avg("verify", "ema.safetensors").returncode == 10


def test_a_rank_named_alone_is_refused_with_its_folder(saved: Path, ema_avg: Run) -> None:
    """The hint names the folder that can be read."""
    folder = saved / "sharded" / "step-90"
    for names in (["rank_1.pt"], ["rank_1.pt", "rank_2.pt"]):
        done = ema_avg(*(folder / name for name in names), "--decay", "0.5")
        assert done.returncode == 3
        assert f'name the folder with the files of all ranks: "{folder}"' in done.stderr


def test_inspect_and_diff_see_one_checkpoint(saved: Path, ema_avg: Run) -> None:
    """The folder of the ranks is one checkpoint, equal to the file of the whole tensors."""
    (found,) = json.loads(ema_avg("inspect", saved / "sharded" / "step-90", "--json").stdout)["checkpoints"]
    assert found["format"] == f"torch zip, parts of {RANKS} ranks"
    assert ema_avg("diff", saved / "both" / "step-90", saved / "whole_90.pt").returncode == 0
    assert ema_avg("diff", saved / "both" / "step-90", saved / "whole_100.pt").returncode == 1


def test_flat_parameters_are_refused(saved: Path, ema_avg: Run) -> None:
    """A local state dict of FSDP1 has no names and shapes of the parameters: nothing is guessed."""
    done = ema_avg(saved / "local", "--decay", "0.5")
    assert done.returncode == 3
    assert "flat parameters of FSDP (LOCAL_STATE_DICT)" in done.stderr
    assert "SHARDED_STATE_DICT" in done.stderr


def test_flat_parameters_in_a_dcp_folder_are_a_warning(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """There the vectors are whole, and the average can go back into the same training; sharded ones say nothing."""
    done = average(ema_avg, saved / "local-dcp", "-o", "local.safetensors")
    assert "4 tensors are flat parameters of FSDP" in done.stderr
    done = average(ema_avg, saved / "flat-dcp", "-o", "flat.safetensors")
    assert "flat parameters" not in done.stderr
    assert_fold(load(tmp_path / "flat.safetensors"), wholes(saved))


def test_parts_without_placements_are_refused(saved: Path, ema_avg: Run) -> None:
    """Halves of tensors are no copies, and nothing says how they fit together."""
    done = ema_avg(saved / "halved", "--decay", "0.5")
    assert done.returncode == 3
    assert "do not state how they fit together" in done.stderr
    assert "join the parts first" in done.stderr


@pytest.mark.parametrize("way", ["sharded", "flat"])
def test_a_missing_rank_is_reported(way: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The last rank is missing: the tensors are incomplete."""
    shutil.copytree(saved / way / "step-90", tmp_path / "step-90")
    (tmp_path / "step-90" / f"rank_{RANKS - 1}.pt").unlink()
    done = ema_avg("inspect", "step-90")
    assert done.returncode == 3
    assert "is incomplete" in done.stderr
    assert "the files of all ranks" in done.stderr


def test_a_rank_of_another_save_is_refused(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """A save that was interrupted leaves files of two steps in one folder."""
    shutil.copytree(saved / "sharded" / "step-90", tmp_path / "step-90")
    shutil.copy(saved / "sharded" / "step-100" / "rank_2.pt", tmp_path / "step-90")
    done = ema_avg("inspect", "step-90")
    assert done.returncode == 3
    assert 'different saves: the steps in "rank_0.pt" and "rank_2.pt" differ' in done.stderr


def change_storage(path: Path, content: torch.Tensor) -> None:
    """Change the first byte of the storage with this content in a file, and its checksum; the pickle stays."""
    raw = content.contiguous().view(torch.uint8).numpy().tobytes()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name, data in records.items() if "/data/" in name and data == raw]
    records[name] = bytes([raw[0] ^ 1]) + raw[1:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("way", ["placed", "copied"])
def test_copies_that_differ_are_refused(way: str, saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Ranks with the same piece of a matrix must have the same values, with a placement and without."""
    shutil.copytree(saved / way / "step-90", tmp_path / "step-90")
    name = "small.weight" if way == "copied" else "first.bias"
    whole = torch.load(saved / "whole_90.pt", weights_only=True)[name]
    change_storage(tmp_path / "step-90" / "rank_3.pt", whole if way == "copied" else whole[5:])
    done = ema_avg("inspect", "step-90")
    assert done.returncode == 3
    assert f'"{name}" differs between' in done.stderr


def test_statistics_that_differ_between_ranks_are_reported(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Every rank has BatchNorm statistics of its own data: those of the first are used, with a warning."""
    shutil.copytree(saved / "sharded", tmp_path / "run")
    for step in STEPS:
        mean = torch.load(saved / f"whole_{step}.pt", weights_only=True)["norm.running_mean"]
        change_storage(tmp_path / "run" / f"step-{step}" / "rank_3.pt", mean)
    done = average(ema_avg, "run", "-o", "ema.safetensors")
    assert '1 tensor without a placement, such as "norm.running_mean", differs between the ranks' in done.stderr
    assert_fold(load(tmp_path / "ema.safetensors"), wholes(saved))


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_checkpoints_of_accelerate_under_fsdp1_are_averaged(
    kind: str, saved: Path, ema_avg: Run, tmp_path: Path
) -> None:
    """``pytorch_model_fsdp_0/`` or ``pytorch_model_fsdp.bin`` is the model; the optimizer beside it is not read."""
    report = json.loads(average(ema_avg, saved / f"accelerate-{kind}", "-o", "ema.safetensors", "--json").stdout)
    assert [entry["step"] for entry in report["inputs"]] == list(STEPS)
    assert_fold(load(tmp_path / "ema.safetensors"), wholes(saved))


def test_the_average_goes_back_into_fsdp1(saved: Path, ema_avg: Run, tmp_path: Path) -> None:
    """``--format same`` keeps optimizer and scheduler, and torch loads the averages from the shards of four ranks."""
    run = saved / "accelerate-sharded"
    average(ema_avg, run, "--format", "same", "-o", "averaged/")
    state: dict[str, Any] = {"model": {name: torch.zeros_like(one) for name, one in wholes(saved)[-1].items()}}
    dcp.load(state, checkpoint_id=tmp_path / "averaged" / "pytorch_model_fsdp_0", no_dist=True)
    assert_fold(state["model"], wholes(saved))
    for name in ("scheduler.bin", "optimizer_0/.metadata", "optimizer_0/__3_0.distcp"):
        assert (tmp_path / "averaged" / name).read_bytes() == (run / f"checkpoint-{STEPS[-1]}" / name).read_bytes()


def test_files_of_ranks_cannot_take_the_average(saved: Path, ema_avg: Run) -> None:
    """Several files may have copies of a tensor: ``--format same`` refuses them, and says what works."""
    done = ema_avg(saved / "both", "--decay", "0.5", "--format", "same", "-o", "averaged/")
    assert done.returncode == 3
    assert "the files of several ranks" in done.stderr
    assert "-o ema.safetensors" in done.stderr


def test_local_state_dicts_of_accelerate_are_refused(saved: Path, ema_avg: Run) -> None:
    """``--fsdp_state_dict_type LOCAL_STATE_DICT`` saves flat parameters; the hint names the option."""
    done = ema_avg(saved / "accelerate-local", "--decay", "0.5")
    assert done.returncode == 3
    assert "flat parameters of FSDP" in done.stderr
    assert "--fsdp_state_dict_type" in done.stderr
