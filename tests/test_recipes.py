"""The recipes of the README, run as they stand there with the variables that the services set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## In CI")[1].split("\n## ")[0]


def script_of(service: str) -> str:
    """Return the shell part of a recipe."""
    blocks: list[str] = re.findall(r"```(?:yaml|sh)\n(.*?)```", SECTION, re.DOTALL)
    if service == "plain":
        return blocks[0]
    if service == "slurm":
        return next(block for block in blocks if "#SBATCH" in block)
    marker = r"run: (.*)" if service == "github" else r"- (ema-avg .*)"
    return next(found.group(1) for block in blocks if (found := re.search(marker, block)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "variables"),
    [
        ("plain", {}),
        ("github", {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_OUTPUT": "output.txt"}),
        ("gitlab", {"GITLAB_CI": "true", "CI": "true"}),
        ("slurm", {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "4711"}),
    ],
)
def test_recipes_run_as_they_stand(service: str, variables: dict[str, str], run_folder: Path, tmp_path: Path) -> None:
    """Each writes the average and its reports, and does nothing the second time."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-euc", script_of(service)],
            cwd=tmp_path,
            env={**os.environ, **variables, "RUN_DIR": "run", "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (run_folder / "ema.safetensors").exists()
    if service == "plain":
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
    else:
        page = "run/ema.4711.html" if service == "slurm" else "ema.html"
        assert (tmp_path / page).read_text().startswith("<!doctype html>")
    if service == "github":
        assert (tmp_path / "summary.md").read_text().count("ema-avg report") == 2
        assert "path<<" in (tmp_path / "output.txt").read_text()
