"""An environment without torch: everything works that does not need a GPU, your model or a training."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

Python = Callable[..., subprocess.CompletedProcess[str]]


def slim_list() -> list[str]:
    """Return the requirements that the README installs after ``pip install --no-deps .``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(r"^pip install --no-deps \.\S*\npip install (.*)$", text, re.MULTILINE)
    assert found
    return [word.strip("'\"") for word in found[1].split()]


def needed(names: Iterator[str]) -> set[str]:
    """Return distributions with everything that they need, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Python with this package and what the README's list installs, by links; nothing else."""
    site = tmp_path_factory.mktemp("site")
    (site / "ema_cli").symlink_to(ROOT / "ema_cli")
    for name in needed(Requirement(line).name for line in slim_list()):
        installed = distribution(name)
        for part in {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / part).symlink_to(Path(str(installed.locate_file(part))))

    def run(code: str, *arguments: object, folder: Path = site) -> subprocess.CompletedProcess[str]:
        begin = f"import sys; sys.path.insert(0, {str(site)!r}); "
        command = [sys.executable, "-I", "-S", "-c", begin + code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)

    return run


MAIN = "sys.argv[0] = 'ema-avg'; from ema_cli.__main__ import main; main()"


def test_the_list_of_the_readme_is_that_of_the_package() -> None:
    """Slim installations have every requirement of the package, with its version, except torch; the action too."""
    declared = {str(Requirement(line)) for line in PROJECT["dependencies"]}
    of_action = (ROOT / ".github" / "actions" / "average" / "requirements.txt").read_text(encoding="utf-8").split()
    for lines in (slim_list(), of_action):
        assert {str(Requirement(line)) for line in lines} == {line for line in declared if "torch" not in line}


def test_there_is_no_torch(python: Python) -> None:
    """The environment of these tests is what it says."""
    assert "No module named 'torch'" in python("import torch").stderr


def test_everything_else_works(python: Python, run_folder: Path) -> None:
    """Planning, averaging, reports, comparing, checking and batches need no torch, nor does the Python interface."""
    folder = run_folder.parent
    for arguments, code in [
        (["run", "--decay", "0.5", "--device", "auto", "-o", "e.safetensors", "--report", "e.html"], 0),
        (["plan", "run", "--decay", "0.5", "--dtype", "bfloat16"], 0),
        (["inspect", "run"], 0),
        (["diff", "run/ckpt_100.pt", "e.safetensors"], 1),
        (["verify", "e.safetensors"], 0),
        (["batch", "run", "--decay", "0.5"], 0),
        (["help", "methods"], 0),
    ]:
        done = python(MAIN, *arguments, folder=folder)
        assert done.returncode == code, done.stderr
    script = "import ema_cli; print(ema_cli.average('run', decay=0.5, output='p.safetensors').averages[0].output.bytes)"
    done = python(script, folder=folder)
    assert int(done.stdout) == (folder / "p.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["run", "--decay", "0.5", "-o", "x.safetensors", "--device", "cuda"], 2, "--device cuda needs torch, which"),
        (["update-bn", "e.safetensors", "--model", "a:b", "--data", "a:c"], 2, "update-bn needs torch, which"),
    ],
)
def test_what_needs_torch_says_so(
    python: Python, run_folder: Path, arguments: list[str], code: int, error: str
) -> None:
    """The error names the library and the command that installs it."""
    done = python(MAIN, *arguments, folder=run_folder.parent)
    assert done.returncode == code
    assert done.stderr.splitlines()[-2].startswith(f"error: {error}")
    assert done.stderr.endswith("try: pip install torch\n")


def test_a_plan_warns_of_the_missing_library(python: Python, run_folder: Path) -> None:
    """A plan for a GPU can be made without torch; it warns that it cannot be carried out here."""
    done = python(MAIN, "plan", "run", "--decay", "0.5", "--device", "cuda", folder=run_folder.parent)
    assert done.returncode == 0
    assert "which is not installed (no-device)" in done.stderr


@pytest.mark.parametrize("name", ["EMA", "update_bn", "TrainerEMA", "LightningAverage"])
def test_names_of_the_package_that_need_torch_say_so(python: Python, name: str) -> None:
    """Importing one of them is an ``ImportError`` with the name and the command."""
    done = python(f"from ema_cli import {name}")
    assert done.stderr.endswith(f"ModuleNotFoundError: ema_cli.{name} needs torch: pip install torch\n")
