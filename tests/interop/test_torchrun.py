"""torchrun itself starts the ranks: on one host, and with two agents as on two hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ema_cli
from tests.helpers.outputs import listing
from tests.helpers.ranks import free_port

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
AVERAGE = ("-m", "ema_cli", "run", "--decay", "0.9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run of three checkpoints."""
    (tmp_path / "run").mkdir()
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        tensors = {name: torch.randn(300, 400, generator=generator) for name in "abcd"}
        save_file(tensors, tmp_path / "run" / f"s_{step}.safetensors")
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start an agent of torchrun."""
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_two_agents(folder: Path) -> None:
    """The ranks of both agents make one folder; rank 0 alone prints; the bytes are those of one process."""
    port = free_port()
    meeting = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", f"{port}")
    agents = [
        start(folder, *meeting, "--node-rank", f"{rank}", *AVERAGE, "-o", "out/", "--max-shard-size", "1MB")
        for rank in (0, 1)
    ]
    outputs = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("wrote out/" in stdout for stdout, _ in outputs) == 1
    report = ema_cli.load_report(folder / "out.report.json")
    assert len(report.environment.ranks) == 2
    ema_cli.average(folder / "run", decay=0.9, output=folder / "alone", max_shard_size="1MB")
    assert listing(folder / "alone") == listing(folder / "out")
    for file in (folder / "alone").iterdir():
        assert file.read_bytes() == (folder / "out" / file.name).read_bytes()


def test_a_failing_rank(folder: Path) -> None:
    """Rank 0 has reported the failure of rank 1 before torchrun ends it."""
    spoiled = folder / "run" / "s_2.safetensors"
    save_file({**load_file(spoiled), "d": torch.full((300, 400), float("nan"))}, spoiled)
    arguments = ("--standalone", "--nproc-per-node", "2", *AVERAGE, "-o", "out.safetensors")
    agent = start(folder, *arguments)
    _, stderr = agent.communicate(timeout=120)
    assert agent.returncode == 1
    assert "error: rank 1 of 2 (" in stderr
    assert 'tensor "d" of "run/s_2.safetensors" holds nan' in stderr
    assert listing(folder) == {"run"}


def test_a_usage_error(folder: Path) -> None:
    """All ranks meet it; the others wait until rank 0 has reported it."""
    agent = start(folder, "--standalone", "--nproc-per-node", "2", *AVERAGE, "-o", "out.safetensors", "--no-such")
    _, stderr = agent.communicate(timeout=120)
    assert agent.returncode == 1
    assert stderr.count("error: there is no option --no-such") == 1
