"""The recipes for CI services in the README and the help topic, run as written, with the variables of each service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8").split("## In CI")[1].split("\n## ")[0]
TOPIC = (ROOT / "ema_cli" / "help" / "ci.md").read_text(encoding="utf-8")


def script_of(service: str, text: str = TOPIC) -> str:
    """Return the shell part of a recipe."""
    blocks: list[str] = re.findall(r"```(?:yaml|sh)\n(.*?)```", text, re.DOTALL)
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
def test_recipes_run_as_written(service: str, variables: dict[str, str], run_folder: Path, tmp_path: Path) -> None:
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


def test_the_readme_has_the_recipe_of_the_topic() -> None:
    """The README's recipe for GitHub is the recipe that is run above."""
    assert script_of("github", README) == script_of("github")
