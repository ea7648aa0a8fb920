"""``--resume`` of several ranks: each keeps what it has completed, and any number of ranks continues."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ema_cli
from ema_cli.distributed.failure import PeerFailed
from ema_cli.report.model import Report
from tests.helpers.outputs import listing
from tests.helpers.ranks import average_in_ranks, started_ranks

TENSORS = 40


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints that take long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("series")
    for step in (1, 2, 3):
        random = np.random.default_rng(step)
        tensors = {f"w{i:02}": random.standard_normal(500_000, dtype=np.float32) for i in range(TENSORS)}
        save_file(tensors, folder / f"s_{step}.safetensors")
    return sorted(folder.iterdir())


@pytest.fixture
def run(series: list[Path], tmp_path: Path) -> Path:
    """A folder of these checkpoints."""
    (tmp_path / "run").mkdir()
    for path in series:
        (tmp_path / "run" / path.name).hardlink_to(path)
    return tmp_path / "run"


def interrupt(run: Path, number: signal.Signals, rank: int) -> list[int]:
    """Start three ranks, and send one a signal when each has completed tensors; return how they ended."""
    names = [".ema.safetensors.journal", ".ema.safetensors.journal-1", ".ema.safetensors.journal-2"]
    arguments = ("run", "--decay", "0.9", "-o", "ema.safetensors", "--resume", "--threads", "1", "--no-probe")
    with started_ranks(3, run.parent, *arguments) as ranks:
        while not all(lines(run.parent / name) > 1 for name in names):
            time.sleep(0.002)
            assert not (run.parent / "ema.safetensors").exists(), "the run was faster"
        os.kill(ranks.running[rank].pid, number)
        return [one.returncode for one in ranks.wait()]


def lines(path: Path) -> int:
    """Return the number of lines of a file, 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "rank", "count"), [(signal.SIGTERM, 0, 2), (signal.SIGKILL, 2, 4), (signal.SIGINT, 1, 1)]
)
def test_any_number_of_ranks_continues(run: Path, number: signal.Signals, rank: int, count: int) -> None:
    """Also one process. What was complete is not read again, and the bytes are those of a run without interruption."""
    codes = interrupt(run, number, rank)
    assert 0 not in codes
    kept = {".ema.safetensors.resume.partial", ".ema.safetensors.journal"}
    assert kept <= listing(run.parent)
    options: dict[str, Any] = {"decay": 0.9, "output": run.parent / "ema.safetensors", "resume": True}
    report: Report
    if count == 1:
        report = ema_cli.average(run, **options)
    else:
        report, _ = average_in_ranks(count, [run], **options)
    assert 0 < report.summary.resumed_tensors < TENSORS
    assert len(report.environment.ranks) == (count if count > 1 else 0)
    assert listing(run.parent) == {"run", "ema.safetensors", "ema.report.json"}
    alone = ema_cli.average(run, decay=0.9, output=run.parent / "alone.safetensors")
    assert (run.parent / "alone.safetensors").read_bytes() == (run.parent / "ema.safetensors").read_bytes()
    assert report.averages[0].tensors == alone.averages[0].tensors
    assert report.geometry == alone.geometry
    assert [one.content for one in report.inputs] == [one.content for one in alone.inputs]


def test_a_run_that_would_fail_again_keeps_nothing(run: Path) -> None:
    """A rank refuses an input: rank 0 removes the partial output, and the journals of all."""
    last = run / "s_3.safetensors"
    spoiled = {**load_file(last), f"w{TENSORS - 1}": np.full(500_000, np.nan, np.float32)}
    last.unlink()
    save_file(spoiled, last)
    with pytest.raises(PeerFailed) as ended:
        average_in_ranks(2, [run], decay=0.9, output=run.parent / "ema.safetensors", resume=True)
    assert ended.value.failure.is_final
    assert ended.value.failure.rank == 1
    assert listing(run.parent) == {"run"}


def test_a_run_without_resume_removes_the_journals(run: Path) -> None:
    """Those of all ranks; names that are no journals of this output stay."""
    interrupt(run, signal.SIGTERM, 1)
    (run.parent / ".ema.safetensors.journal-x").write_text("mine")
    ema_cli.average(run, decay=0.9, output=run.parent / "ema.safetensors")
    assert listing(run.parent) == {"run", "ema.safetensors", "ema.report.json", ".ema.safetensors.journal-x"}
