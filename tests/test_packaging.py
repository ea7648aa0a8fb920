"""The installed package: the wheel, its entry point, its types, its help topics; and the options in the README.

The compiled kernel in it is the subject of ``test_kernel_build.py``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ema_cli.cli.app import app
from tests.helpers.building import UNPACKING, build, copy_sources

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built without a compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    build(copy_sources(folder / "source"), folder, "--wheel", CC="false")
    (built,) = folder.glob("ema_avg-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel has every file of the package except the C sources, and the console script; no tests, no scripts."""
    names = zipfile.ZipFile(wheel).namelist()
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ema_cli").rglob("*") if path.is_file()}
    left_out = (".pyc", ".so", ".c", ".h")
    assert {name for name in names if ".dist-info/" not in name} == {p for p in package if not p.endswith(left_out)}
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"ema-avg = ema_cli.cli:main" in zipfile.ZipFile(wheel).read(entry_points)


@pytest.mark.slow
def test_the_source_archive_builds_the_same_package(wheel: Path, tmp_path: Path) -> None:
    """It has what the wheel is built from, and the tests; unpacked, it gives a wheel with the same files."""
    build(copy_sources(tmp_path / "source"), tmp_path, "--sdist")
    (archive,) = tmp_path.glob("ema_avg-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, **UNPACKING)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    sources = [path.relative_to(ROOT) for path in (ROOT / "ema_cli" / "fold").glob("*.[ch]")]
    assert all((unpacked / path).is_file() for path in sources)
    build(unpacked, tmp_path, "--wheel", CC="false")
    (again,) = tmp_path.glob("ema_avg-*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_wheel_works_without_the_source_tree(wheel: Path, run_folder: Path) -> None:
    """Unpacked elsewhere, the package averages a run and reports its version."""
    target = run_folder.parent / "installed"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import ema_cli\n"
        "assert ema_cli.__file__.startswith(sys.argv[1]), ema_cli.__file__\n"
        "report = ema_cli.average(sys.argv[2], decay=0.5, output='ema.safetensors')\n"
        "print(report.averages[0].output.bytes)\n"
    )
    command = [sys.executable, "-I", "-c", code, str(target), str(run_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run_folder.parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (run_folder.parent / "ema.safetensors").stat().st_size


def test_the_readme_names_options_that_exist() -> None:
    """Each option in the README and in the help topics is an option of a command."""
    pages = [ROOT / "README.md", *(ROOT / "ema_cli" / "help").glob("*.md")]
    runner = CliRunner()
    commands = ("average", "batch", "inspect", "diff", "verify", "update-bn", "help")
    shown = [runner.invoke(app, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output for name in commands]
    options = {option for text in shown for option in re.findall(r"--[a-z][a-z0-9-]+", text)}
    for page in pages:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", _own_lines(page.read_text(encoding="utf-8"))))
        assert named <= options | {"--version", "--install-completion", "--finetune"}, page.name


def _own_lines(text: str) -> str:
    """Return a page without the lines of other programs."""
    return "\n".join(
        line for line in text.splitlines() if not line.startswith(("#SBATCH", "pip ", "scripts/", "srun ", "torchrun "))
    )
