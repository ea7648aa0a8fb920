"""Forked runs, which most tests use, equal the runs that a shell starts: their messages, files and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.program import Run, forked, started

pytestmark = pytest.mark.slow
AVERAGE = ("run", "--decay", "0.5", "-o", "ema.safetensors")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same run in each."""
    for name in ("forked", "started"):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        for step in (1, 2, 3):
            save_file({"w": torch.full((3,), float(step))}, folder / f"c_{step}.safetensors")
    return tmp_path / "forked", tmp_path / "started"


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        (["--help"], {"FORCE_COLOR": "1"}),
        ([], {}),
        (["plan", "run", "--decay", "0.9"], {"GITHUB_ACTIONS": ""}),
        (["plan", "run", "--decay", "0.9", "--no-color"], {"COLUMNS": "60"}),
        (["inspect", "run", "-v"], {"NO_COLOR": "1"}),
        (["--decya", "0.9"], {}),
        (["nothing", "--decay", "0.9"], {"PYTHONIOENCODING": "ascii"}),
        (["plan", "run", "--decay", "7", "--json"], {}),
        (["run", "-o", "ema.safetensors", "--show-config"], {"EMA_AVG_DECAY": "0.25"}),
    ],
)
def test_a_forked_run_prints_what_a_started_one_prints(
    arguments: list[str], variables: dict[str, str], folders: tuple[Path, Path]
) -> None:
    """Standard output, standard error and the exit status are the same."""
    forks, starts = (
        make(folder)(*arguments, **variables) for make, folder in zip((forked, started), folders, strict=True)
    )
    assert (forks.returncode, forks.stdout, forks.stderr) == (starts.returncode, starts.stdout, starts.stderr)


def test_a_forked_run_writes_what_a_started_one_writes(folders: tuple[Path, Path]) -> None:
    """The bytes of the output are the same, and the reports have the same command."""
    runs: list[Run] = [forked(folders[0]), started(folders[1])]
    assert [run(*AVERAGE).returncode for run in runs] == [0, 0]
    outputs = [(folder / "ema.safetensors").read_bytes() for folder in folders]
    assert outputs[0] == outputs[1]
    reports = [json.loads((folder / "ema.report.json").read_bytes()) for folder in folders]
    assert reports[0]["command"] == reports[1]["command"]
    forks, starts = (run(*AVERAGE).stdout for run in runs)
    assert forks == starts
    assert "up to date" in forks
