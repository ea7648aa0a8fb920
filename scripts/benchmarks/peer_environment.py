"""The virtual environment of the peers: they want other versions of the same libraries than ema-avg does."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from .measure import ROOT, Failed, note
from .peer_programs import IMPORTS

_PINS = ROOT / "scripts" / "peers.txt"
_COMMON = ("torch", "numpy", "safetensors")
_ALONE = ("timm",)
"""Installed without what they need: see ``peer_programs.TIMM``."""


def made_environment(folder: Path) -> Path:
    """Return the Python of an environment, made if there is none; report on stderr what failed."""
    python = folder / "bin" / "python"
    if not python.exists():
        note(f"making {folder} for the peers; torch is by far the largest")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        reasons = {}
        lines = [line for line in _PINS.read_text().splitlines() if line and not line.startswith("#")]
        pins = {line.partition("==")[0]: line for line in lines}
        _install(python, [pins.pop(name) for name in _COMMON])
        for name, pin in pins.items():
            try:
                _install(python, [pin, *(["--no-deps"] if name in _ALONE else [])])
            except Failed as error:
                reasons[name] = str(error)
                note(f"{name} could not be installed: {error}")
        (folder / "not-installed.json").write_text(json.dumps(reasons))
    return python


def _install(python: Path, arguments: list[str]) -> None:
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        _PINS,
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(_last_line(done.stderr))


@cache
def found_version(python: Path, module: str, package: str) -> str:
    """Return the version of a package; if it cannot be imported, raise ``Failed`` with the reason."""
    done = subprocess.run([python, "-c", IMPORTS, module, package], capture_output=True, text=True, check=False)
    if not done.returncode:
        return done.stdout.split()[-1]
    record = python.parents[1] / "not-installed.json"
    reasons = json.loads(record.read_text()) if record.exists() else {}
    raise Failed(reasons.get(package) or _last_line(done.stderr))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"WARNING|\[notice\]", line)]
    return (lines or ["no reason given"])[-1].strip()[:200]
