"""Runs of the program: how they are started, and how they ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROGRAM = (sys.executable, "-m", "ema_cli")
PATIENCE_SECONDS = 120
"""A run that takes longer counts as hung."""
HUNG = 124


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. The status is that of ``Popen``: negative for a signal."""

    status: int
    stderr: str
    stdout: str = ""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, **how: Any) -> Ended:
    """Run a command to its end; ``how`` is passed to ``Popen``."""
    standard = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    everything = {"env": {**os.environ, **(environment or {})}, "text": True, "errors": "replace", **standard, **how}
    process = subprocess.Popen(command, **everything)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return hung()
    return Ended(process.returncode, stderr or "", stdout or "")


def hung() -> Ended:
    """Return the end of a run that had to be killed."""
    return Ended(HUNG, f"did not end within {PATIENCE_SECONDS} s")
