"""Fixtures of several test modules: a run of real checkpoints, and the command line as a process."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from ema_cli.storage import protocols
from tests.helpers.program import Run, forked

HERE = Path(__file__).parent
LONG = ("test_scripts.py", "test_dcp.py", "test_changes.py", "test_faults.py", "test_signals.py", "test_kills.py")


protocols.PROTOCOLS = (*protocols.PROTOCOLS, "memory")  # stores in the memory of the tests' process


def pytest_configure() -> None:
    """Let the tests' processes have the default signal handlers, and streams as wide as they are without a terminal.

    No test fails because the machine is busy.
    """
    settings.register_profile("any-time", deadline=None)
    settings.load_profile("any-time")
    os.environ.pop("COLUMNS", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that at the end no process of the tests waits for another."""
    items.sort(key=lambda item: not item.path.is_relative_to(HERE / "interop") and item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """Let the garbage collector skip the imported modules, and torch share the processors with other processes."""
    gc.collect()
    gc.freeze()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with five nested checkpoints of a small model, as a training loop writes them."""
    import torch  # noqa: PLC0415 - takes seconds, and many tests need none

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
    return forked(tmp_path)
