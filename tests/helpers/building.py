"""Builds of the package from a copy of its sources: offline, and without traces in the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
UNPACKING: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Arguments of ``extractall``; Python before 3.11.4 has no filters."""


def copy_sources(folder: Path) -> Path:
    """Copy what the build needs to a new folder, and binaries that it must leave out. Return the folder."""
    for name in ("ema_cli", "tests", "scripts", ".github"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("fold/_kernel.abi3.so", "help/left.so", "help/left.pyc"):
        (folder / "ema_cli" / name).write_bytes(b"left by another build")
    return folder


def build(source: Path, folder: Path, kind: str, **variables: str) -> str:
    """Build a source tree into a folder; return what the build printed. Without isolation it needs no network."""
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def version_shown(package: Path, numpy: str = "") -> str:
    """Return what ``ema-avg version`` prints for the package in a folder; ``numpy`` is the value of EMA_AVG_NUMPY."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import ema_cli\n"
        "assert ema_cli.__file__.startswith(sys.path[0]), ema_cli.__file__\n"
        "from ema_cli.cli.main import run; run(['version'])"
    )
    command = [sys.executable, "-I", "-c", code, str(package)]
    environment = os.environ | {"EMA_AVG_NUMPY": numpy}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=package, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
