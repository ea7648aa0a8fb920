"""The compiled kernel is optional: what is built with and without a compiler, and which kernels are not used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from ema_cli import fold
from ema_cli._version import __version__
from ema_cli.fold import kernel
from tests.helpers.building import ROOT, build, copy_sources, version_shown

HEADER = Path(sysconfig.get_paths()["include"]) / "Python.h"
needs_compiler = pytest.mark.skipif(not (shutil.which("cc") and HEADER.exists()), reason="needs a C compiler")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with binaries that another build left."""
    return copy_sources(tmp_path_factory.mktemp("kernel") / "source")


@pytest.mark.slow
@needs_compiler
def test_one_wheel_has_the_kernel_for_all_versions(sources: Path, tmp_path: Path) -> None:
    """With a compiler the wheel has the kernel, for Python 3.11 and newer; unpacked, it is used."""
    build(sources, tmp_path, "--wheel")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"ema_avg-{__version__}-cp311-abi3-")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert [path.name for path in tmp_path.rglob("*.so")] == ["_kernel.abi3.so"]
    assert version_shown(tmp_path / "site").splitlines()[1].startswith("fold on the CPU: compiled (")


@pytest.mark.slow
def test_without_a_compiler_numpy_is_used(sources: Path, tmp_path: Path) -> None:
    """The same command succeeds, warns, and leaves out the kernel; the program says that numpy is used."""
    assert 'building extension "ema_cli.fold._kernel" failed' in build(sources, tmp_path, "--wheel", CC="false")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert not list(tmp_path.rglob("*.so"))
    expected = f"ema-avg {__version__}\nfold on the CPU: numpy (the compiled kernel is not installed)\n"
    assert version_shown(tmp_path / "site") == expected


@pytest.mark.slow
@needs_compiler
def test_an_editable_install_does_not_use_an_older_kernel(tmp_path: Path) -> None:
    """It is a path to the tree, with the kernel in it; where a later build fails, the kernel left there is not used."""
    source = copy_sources(tmp_path / "source")
    build_editable(source)
    assert "compiled (" in version_shown(source)
    (wheel,) = source.glob("*.whl")
    (path,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".pth"))
    assert zipfile.ZipFile(wheel).read(path).decode().strip() == str(source)
    (source / "ema_cli" / "fold" / "_kernel_loops.h").touch()
    build_editable(source, CC="false")
    assert "numpy (the compiled kernel is older than its source: install ema-avg again)" in version_shown(source)


def build_editable(source: Path, **variables: str) -> None:
    """Do what ``pip install --editable`` asks of the build."""
    code = "from setuptools import build_meta; build_meta.build_editable('.')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr


def test_a_damaged_kernel_is_not_used(tmp_path: Path) -> None:
    """A file that is no library is no reason to fail: the program says why numpy is used. The variable comes first."""
    package = copy_sources(tmp_path / "source")
    assert "\nfold on the CPU: numpy (the compiled kernel cannot be loaded: " in version_shown(package)
    assert version_shown(package, numpy="1").endswith("\nfold on the CPU: numpy (EMA_AVG_NUMPY is set)\n")


@pytest.mark.parametrize(
    ("interface", "age", "reason"),
    [
        (kernel._INTERFACE, 5, ""),
        (kernel._INTERFACE, -5, "the compiled kernel is older than its source: install ema-avg again"),
        (kernel._INTERFACE + 1, 5, "the compiled kernel is of another version: install ema-avg again"),
    ],
)
def test_a_kernel_of_other_sources_is_not_used(
    interface: int, age: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel with another number, or older than a source beside it, is found and not used."""
    install_kernel(tmp_path, interface, monkeypatch)
    for name in ("_kernel.c", "any.h"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "_kernel.abi3.so", (2e9, 2e9))
    os.utime(tmp_path / "any.h", (2e9 - age, 2e9 - age))
    found, shown = kernel.find_kernel()
    assert (found is None, shown) == (bool(reason), reason)


def install_kernel(folder: Path, interface: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module with a number the kernel."""
    module = ModuleType("ema_cli.fold._kernel")
    module.INTERFACE = interface  # type: ignore[attr-defined]
    module.__file__ = str(folder / "_kernel.abi3.so")
    Path(module.__file__).touch()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fold, "_kernel", module, raising=False)
    monkeypatch.delenv(kernel.NUMPY_VARIABLE, raising=False)


SETUP_PYTHON = """#!/bin/sh
echo "$*" >>calls
"""


def test_set_up_compiles_the_kernel_again_offline(tmp_path: Path) -> None:
    """It does so once after a source has changed, without the network and without installing anything else."""
    source = copy_sources(tmp_path / "source")
    programs = source / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ema-avg"):
        (programs / name).write_text(SETUP_PYTHON)
        (programs / name).chmod(0o755)

    def calls() -> list[str]:
        (source / "calls").write_text("")
        command = ["bash", "-euo", "pipefail", "-c", "extras=quick source scripts/setup.sh"]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        return (source / "calls").read_text().splitlines()

    (first,) = calls()
    assert ".[quick] setuptools" in first
    assert calls() == []
    for change in (lambda path: path.write_text("other"), Path.touch):
        change(source / "ema_cli" / "fold" / "_kernel_loops.h")
        install, version = calls()
        assert {"--no-index", "--no-deps", "--no-build-isolation", "--editable"} < set(install.split())
        assert version == "version"
        assert calls() == []


def test_the_build_knows_the_headers() -> None:
    """It lists each of them, so that the source archive has it, and a change of it compiles the kernel again."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        (extension,) = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    headers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ema_cli" / "fold").glob("*.h")}
    assert headers == {path for path in extension["depends"] if path.endswith(".h")}


def test_the_number_of_the_kernel_is_that_of_its_source() -> None:
    """The program and the C source have the same number, so that a new kernel is used."""
    source = (ROOT / "ema_cli" / "fold" / "_kernel.c").read_text(encoding="utf-8")
    assert f"#define INTERFACE {kernel._INTERFACE} " in source
