"""``scripts/gpu_check`` without a GPU: all of its steps, and what it would notice."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ema_cli.errors import SystemExhausted
from ema_cli.fold.conversion import NUMPY_TYPES
from ema_cli.fold.cuda import TorchLane

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script as a module."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_check")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, with the Python of the tests."""
    command = [str(SCRIPTS / "gpu_check"), "--python", sys.executable, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run at the same time
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_all_steps_run_on_the_cpu_device(tmp_path: Path) -> None:
    """Every type is compared; bits, speed, start and whole runs are in the tables and in the document."""
    done = run(tmp_path, "--device", "cpu", "--json", "found.json", "--folder", ".")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all bits are those of the CPU\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["type"] for row in found["bits"]} == {row["type"] for row in found["speed"]} == set(NUMPY_TYPES)
    assert not any(row["differing"] for row in found["bits"])
    assert found["start"]["total"] > 0
    assert [(row["averages"], row["auto"], row["differing_files"]) for row in found["runs"]] == [(4, "cpu", [])] * 2
    assert [row["averages"] for row in found["break_even"]] == [4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """It is not the one of different bits, and the message says what to do."""
    done = run(tmp_path)
    assert done.returncode == 2
    assert "finds 0 GPUs: --python PATH" in done.stderr


def test_a_wrong_bit_is_noticed(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One last bit of the last number of a block, in every type."""
    assert not any(row["differing"] for row in script.check_bits(torch.device("cpu"), 256))

    class Wrong(TorchLane):
        def sums(self) -> list[NDArray[np.float64]]:
            found = [total.copy() for total in super().sums()]
            found[-1][-1:] = np.nextafter(np.where(np.isnan(found[-1][-1:]), 1, found[-1][-1:]), 0)
            return found

    monkeypatch.setattr(script, "TorchLane", Wrong)
    assert all(row["differing"] for row in script.check_bits(torch.device("cpu"), 256))


def test_a_lane_that_fails_ends_the_measurement(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without memory is an error of the script, which does not wait for the other threads forever."""

    class Failing(TorchLane):
        def sums(self) -> list[NDArray[np.float64]]:
            raise SystemExhausted("the GPU failed: CUDA out of memory")

    monkeypatch.setattr(script, "TorchLane", Failing)
    with pytest.raises(SystemExhausted, match="out of memory"):
        script.lane_rate(torch.device("cpu"), "F32", 1, 1024, threads=2, seconds=0.01)


def test_no_round_starts_when_time_is_up(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run on each device is measured, then no other of the same kind, and the other kinds are left out."""
    runs: list[str] = []

    def timed_run(_: object, __: int, device: str, ___: Path) -> float:
        runs.append(device)
        clock[0] += 20.0
        return 1.0

    clock = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(script, "timed_run", timed_run)
    monkeypatch.setattr(script, "write_series", lambda *_: [])
    monkeypatch.setattr(script, "rule", lambda *_: script.break_even.BreakEven(cpu_seconds=1.0, gpu_seconds=2.0))
    found = list(script.measure_runs("cuda", tmp_path, 90.0, quick=False))
    assert runs == ["cpu", "cuda"] * 3
    assert [row["averages"] for row in found] == [1, 4]


def test_a_gpu_pays_where_two_lines_cross(script: Any) -> None:
    """The device that starts later pays if it takes less per byte; from zero on, if it starts earlier too."""
    assert script.crossing((1.0, 2e-9), (4.0, 1e-9)) == pytest.approx(3e9)
    assert script.crossing((1.0, 1e-9), (4.0, 2e-9)) is None
    assert script.crossing((4.0, 2e-9), (1.0, 1e-9)) == 0
