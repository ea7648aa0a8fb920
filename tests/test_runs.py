"""The runs of ``ema-avg batch`` if checkpoints are folders: names decide, and nothing is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.batch.find_runs import find_runs
from ema_cli.errors import InputRefused, NothingMatched
from tests.helpers.folders import write_folder
from tests.helpers.program import Run
from tests.helpers.series import load, random_states, reference_average, write_one


def found(*names: object) -> list[str]:
    """Return the runs that are found, as text."""
    return [str(folder) for folder in find_runs([str(name) for name in names]).folders]


def test_a_folder_of_checkpoint_folders_is_a_run(tmp_path: Path) -> None:
    """Runs are found at any depth, next to runs of files; the final model in a run does not hide the run."""
    for name in ("a/checkpoint-1", "a/checkpoint-2", "b/deep/step-5", "b/deep/step-6"):
        write_folder(tmp_path / "root" / name)
    write_folder(tmp_path / "root" / "a")
    write_one(tmp_path / "root" / "c" / "ckpt_1.pt")
    write_folder(tmp_path / "root" / "pretrained")
    runs = [str(tmp_path / "root" / name) for name in ("a", "b/deep", "c")]
    assert found(tmp_path / "root") == runs
    assert found(*runs) == runs
    assert found(f"{tmp_path}/root/*/") == runs
    assert not find_runs([str(tmp_path / "root")]).warnings


def test_a_checkpoint_is_no_run(tmp_path: Path) -> None:
    """A checkpoint among runs is skipped with a warning; alone it is an error that names the folder above."""
    folder = write_folder(tmp_path / "run" / "checkpoint-1", 1)
    write_one(tmp_path / "other" / "ckpt_1.pt")
    search = find_runs([str(folder), str(tmp_path / "other")])
    assert search.folders == (tmp_path / "other",)
    (warning,) = search.warnings
    assert warning.code == "not-a-run"
    assert warning.hint.endswith(str(tmp_path / "run"))
    with pytest.raises(NothingMatched, match="only single checkpoints") as refused:
        found(folder)
    assert "ema-avg CKPT..." in refused.value.hint


def test_folders_of_a_run_are_not_runs_inside_it(tmp_path: Path) -> None:
    """Only folders that are runs themselves are reported: not the checkpoints, the final model, or empty folders."""
    for name in ("checkpoint-1", "checkpoint-2", "final", "optimizer_0"):
        write_folder(tmp_path / name)
    (tmp_path / "runs").mkdir()
    write_one(tmp_path / "checkpoint-3" / "weights.pt")
    assert not find_runs([str(tmp_path)]).warnings
    write_folder(tmp_path / "second" / "step-1")
    assert [warning.code for warning in find_runs([str(tmp_path)]).warnings] == ["runs-in-runs"]


def test_an_impossible_name_is_refused_with_a_message() -> None:
    """A name that the system cannot even look up causes no internal error."""
    with pytest.raises(InputRefused, match="cannot be searched: File name too long"):
        found("x" * 5000)


def test_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of large checkpoints is searched by names alone."""
    for step in (1, 2):
        write_folder(tmp_path / f"checkpoint-{step}", step)

    def forbidden(*_: object) -> None:
        raise AssertionError

    for module in ("batch.find_runs", "formats.folder", "formats.open"):
        monkeypatch.setattr(f"ema_cli.{module}.open_source", forbidden)
    assert found(tmp_path) == [str(tmp_path)]


def test_a_batch_over_runs_of_the_trainer(tmp_path: Path, ema_avg: Run) -> None:
    """Every run gets its average; the second time all are up to date, though the averages are in the runs."""
    runs = {name: random_states(3, seed=seed) for seed, name in enumerate(("a", "b"))}
    for name, states in runs.items():
        for step, state in enumerate(states, 1):
            folder = tmp_path / "runs" / name / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            save_file(state, folder / "model.safetensors", {"format": "pt"})
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    arguments = ["batch", "runs", "--decay", "0.5", "-o", "{run}/ema.safetensors"]
    done = ema_avg(*arguments)
    assert done.returncode == 0, done.stderr
    for name, states in runs.items():
        output = load(tmp_path / "runs" / name / "ema.safetensors")
        reference = reference_average([state["layer.weight"] for state in states], [0.25, 0.25, 0.5])
        assert torch.equal(output["layer.weight"], torch.from_numpy(reference).float())
    assert "2 up to date" in ema_avg(*arguments).stdout
