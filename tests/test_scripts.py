"""The scripts of the repository do what the README says of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import Run

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run_script(name: str, *arguments: object, folder: Path) -> str:
    """Run a script and return what it printed."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demonstration_trains_averages_and_compares(tmp_path: Path, ema_avg: Run) -> None:
    """A real run is averaged from nested and from flat checkpoints into the same bytes, and loads into the model."""
    shown = run_script("digits.py", "train", "run", folder=tmp_path)
    assert len(re.findall(r"^step", shown, re.MULTILINE)) == 13
    for source, output in (("run", "nested.safetensors"), ("run/safetensors", "flat.safetensors")):
        assert ema_avg(source, "--decay", "0.8", "-o", output).returncode == 0
    assert (tmp_path / "nested.safetensors").read_bytes() == (tmp_path / "flat.safetensors").read_bytes()
    compared = run_script("digits.py", "evaluate", "run", "nested.safetensors", folder=tmp_path)
    last, average = (float(value) for value in re.findall(r"(\d+\.\d)%", compared))
    assert last > 50
    assert average > 50


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """A small run of the benchmark prints its tables."""
    shown = run_script("bench.py", "--quick", "--rounds", "1", "--folder", tmp_path, folder=tmp_path)
    for words in ("naive", "cat + copy", "peak", "--help"):
        assert words in shown
