"""What several test modules share: a run of real checkpoints, and the command line as a process."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure() -> None:
    """Let the processes of the tests be interrupted where this one was started with interrupts ignored (``&``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with five nested checkpoints of a small model, as a training loop writes them."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(1, 6):
        torch.manual_seed(number)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
        model(torch.randn(16, 6))
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
            "step": 100 * number,
            "args": argparse.Namespace(lr=0.1),
        }
        torch.save(checkpoint, folder / f"ckpt_{100 * number}.pt")
    return folder


@pytest.fixture
def ema_avg(tmp_path: Path) -> Run:
    """Run ``ema-avg`` as a process in the test's folder, without a terminal; return what it printed and its status."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ema_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )

    return run
