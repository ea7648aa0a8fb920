"""The action for GitHub, the recipe for GitLab and the one for Slurm run as these services run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
ACTION = ROOT / ".github" / "actions" / "average"
GITHUB_SHELL = ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail")
"""What GitHub runs for ``shell: bash``."""


def recipes(language: str) -> list[str]:
    """Return the blocks of a language on the help page."""
    text = (ROOT / "ema_cli" / "help" / "ci.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: list[str] | tuple[str, ...], script: str, folder: Path, **variables: str) -> Any:
    """Run a script in a folder with the variables of a service; ``ema-avg`` is that of this environment."""
    file = folder / ".script.sh"
    file.write_text(script)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [*command, str(file)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


class Runner:
    """Runs the steps of the action in a folder, as a GitHub runner does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: folder / f".{name}" for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        self.action = yaml.safe_load((ACTION / "action.yml").read_text(encoding="utf-8"))

    def __call__(self, **inputs: str) -> Any:
        """Return the last step that ran; the first that fails ends the action."""
        for name, one in self.action["inputs"].items():
            assert one.get("required", False) == (name == "paths")
            inputs.setdefault(name, one.get("default", ""))
        for step in self.action["runs"]["steps"]:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]  # an expression there would be a part of the script
            done = run(GITHUB_SHELL, step["run"], self.folder, **self._variables(step.get("env", {}), inputs))
            if done.returncode:
                break
        return done

    def _variables(self, step: Mapping[str, str], inputs: Mapping[str, str]) -> dict[str, str]:
        filled = {
            name: re.sub(r"\${{ inputs\.(\w+) }}", lambda found: inputs[found[1]], value)
            for name, value in step.items()
        }
        files = {name: str(path) for name, path in self.files.items()}
        return {"GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(ACTION), **files, **filled}

    def outputs(self) -> dict[str, str]:
        """Return the outputs of the action."""
        text = self.files["GITHUB_OUTPUT"].read_text()
        of_step = dict(re.findall(r"^(\w+)<<\w+\n(.*?)\nema_avg_", text, re.MULTILINE | re.DOTALL))
        names = (one["value"] for one in self.action["outputs"].values())
        found = [re.fullmatch(r"\${{ steps\.average\.outputs\.(\w+) }}", name) for name in names]
        return {one[1]: of_step[one[1]] for one in found if one}


@pytest.fixture
def github(run_folder: Path) -> Runner:
    """A runner of GitHub beside a run folder."""
    return Runner(run_folder.parent)


def test_the_action_averages(github: Runner) -> None:
    """Its outputs are those of the command; the summary has the report, and the page is written."""
    done = github(paths="run\n", options="--decay 0.5 -o 'my ema.safetensors'", report="page.html")
    assert done.returncode == 0, done.stderr
    outputs = github.outputs()
    assert {name: outputs[name] for name in ("path", "report", "count")} == {
        "path": "my ema.safetensors",
        "report": "my ema.report.json",
        "count": "1",
    }
    assert len(outputs["sha256"]) == 64
    assert (github.folder / "page.html").read_text().startswith("<!doctype html>")
    assert "ema-avg report" in github.files["GITHUB_STEP_SUMMARY"].read_text()


def test_paths_of_the_action_are_lines(github: Runner) -> None:
    """Names may have blanks; patterns are expanded by ema-avg; several averages are several lines of an output."""
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, github.folder / f"with blank {step}.safetensors")
    options = "--decay 0.5\n--decay 0.9 --strip-prefix '' -o 'e_{decay}.safetensors'"
    done = github(paths="\n  with blank 1.safetensors\nwith*2.safetensors \n", options=options)
    assert done.returncode == 0, done.stderr
    assert github.outputs()["path"] == "e_0.5.safetensors\ne_0.9.safetensors"


@pytest.mark.parametrize("words", ["$(touch pwned)", "`touch pwned`", "; touch pwned", "'; touch pwned; '", "*"])
def test_nothing_in_the_inputs_of_the_action_is_run(github: Runner, words: str) -> None:
    """Inputs may come from strangers, such as the title of a pull request."""
    for inputs in ({"paths": words, "options": "--decay 0.5"}, {"paths": "run", "options": f"--decay {words}"}):
        assert github(**inputs).returncode in ((0, 2) if words == "*" else (2, 3, 7))  # ema-avg knows patterns
    assert github(paths="run", options="--decay 0.5", report=words).returncode == 2
    assert not (github.folder / "pwned").exists()


def test_paths_of_the_action_are_no_options(github: Runner) -> None:
    """A path may begin with a dash."""
    (github.folder / "run").rename(github.folder / "-o")
    done = github(paths="-o", options="--decay 0.5")
    assert done.returncode == 0, done.stderr
    assert github.outputs()["path"] == "ema.safetensors"


def test_errors_end_the_action(github: Runner) -> None:
    """An unclosed quote and an error of ema-avg fail the step, with the exit code."""
    assert github(paths="run", options="--decay '0.5").returncode == 1
    done = github(paths="missing", options="--decay 0.5 -o e.safetensors")
    assert done.returncode == 7
    assert "::error title=ema-avg::" in done.stderr


@pytest.mark.slow
def test_the_action_installs_the_package(github: Runner, tmp_path: Path) -> None:
    """Where there is no ema-avg, the step builds and installs this repository, without its requirements."""
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    subprocess.run([home / "bin/pip", "uninstall", "--quiet", "--yes", "setuptools"], check=True)  # ours is newer
    (site,) = home.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")  # the requirements, and what builds
    source = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".*env*", ".git", "demo", "tests", "*cache*")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    step = github.action["runs"]["steps"][0]
    variables = {
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": "",
        "GITHUB_ACTION_PATH": str(source / ".github" / "actions" / "average"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_IGNORE_INSTALLED": "0",
    }
    done = run(GITHUB_SHELL, step["run"], tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = run(("bash",), "ema-avg --version", tmp_path, **variables)
    assert shown.stdout.startswith("ema-avg 0."), shown.stderr
    assert "\nfold on the CPU: " in shown.stdout


def test_the_first_recipe(run_folder: Path) -> None:
    """It prints the digest of the average, and does nothing the second time."""
    for _ in range(2):
        done = run(("sh", "-eu"), recipes("sh")[0], run_folder.parent, RUN_DIR="run")
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout), done.stderr


def test_the_recipe_for_gitlab(run_folder: Path) -> None:
    """The script of the job writes its artifact, with the plan in a section of the log."""
    (job,) = (yaml.safe_load(one)["average"] for one in recipes("yaml") if "artifacts:" in one)
    done = run(("bash",), "\n".join(["set -e", *job["script"]]), run_folder.parent, GITLAB_CI="true", RUN_DIR="run")
    assert done.returncode == 0, done.stderr
    assert "section_start" in done.stderr
    assert all((run_folder.parent / path).is_file() for path in job["artifacts"]["paths"])


def test_the_recipe_for_slurm(run_folder: Path) -> None:
    """The batch script runs under the shell that it names, prints nothing, and names its page by the job."""
    (script,) = (one for one in recipes("sh") if "#SBATCH" in one)
    assert script.startswith("#!/bin/sh\n")
    variables = {"RUN_DIR": "run", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "17"}
    done = run(("/bin/sh",), script, run_folder.parent, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (run_folder / "ema.17.html").is_file()
    assert (run_folder / "ema.safetensors").is_file()


@pytest.mark.parametrize("page", ["ema_cli/help/ci.md", "README.md"])
def test_the_step_on_a_page_is_one_of_the_action(page: str, github: Runner) -> None:
    """It uses the action by its folder, only inputs that the action has, and options that work."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (step,) = (yaml.safe_load(one)[0] for one in blocks if "actions/average" in one)
    assert ACTION.relative_to(ROOT).as_posix() in step["uses"]
    inputs = {**step["with"], "paths": "run"}
    assert set(inputs) <= set(github.action["inputs"])
    for _ in range(2):
        done = github(**inputs)
        assert done.returncode == 0, done.stderr
