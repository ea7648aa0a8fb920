"""Shards that are named alone, and faults of many files: one line for a reason, and what works instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import dcp_makers
from tests.helpers.folders import write_shards
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series

UNIFORM = ("--method", "uniform")


def proposed(stderr: str) -> list[str]:
    """Return the commands of a hint."""
    return [f"ema-avg {part.partition('ema-avg ')[2]}".strip() for part in stderr.partition("try:")[2].split("; or ")]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A run of three checkpoints in two shards each."""
    for step, state in zip((10, 20, 30), random_states(3), strict=True):
        write_shards(tmp_path / "run" / f"checkpoint-{step}", state, count=2)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("run/*/*.safetensors", "ema-avg plan run --method uniform"),
        ("run/checkpoint-[12]0/*.safetensors", "ema-avg plan run/checkpoint-10 run/checkpoint-20 --method uniform"),
        ("run/checkpoint-10/*.safetensors", "ema-avg plan run/checkpoint-10 --method uniform"),
    ],
)
def test_shards_propose_the_folders_that_contain_them(sharded: Path, ema_avg: Run, pattern: str, command: str) -> None:
    """The shards of all checkpoints of a run stand for the run, others for their folders; nothing else is averaged."""
    assert sharded.exists()
    done = ema_avg("plan", pattern, *UNIFORM)
    assert done.returncode == 3
    assert done.stderr.count("one of the 2 shards of a model") == 1
    assert proposed(done.stderr) == [command]
    assert ema_avg(*command.split()[1:]).returncode == 0


@pytest.mark.parametrize("name", ["*.distcp", ".metadata"])
def test_files_of_a_distributed_checkpoint_propose_its_folder(tmp_path: Path, ema_avg: Run, name: str) -> None:
    """They are not called damaged: the folder that they belong to is a checkpoint."""
    for step in (1, 2):
        dcp_makers.save(tmp_path / "run" / f"step-{step}", {"w": torch.full((3,), float(step))})
    done = ema_avg("plan", f"run/step-*/{name}", *UNIFORM)
    assert done.returncode == 3
    assert "one file of a distributed checkpoint (DCP)" in done.stderr
    assert "damaged" not in done.stderr
    assert proposed(done.stderr) == ["ema-avg plan run --method uniform"]


def test_one_reason_of_many_files_is_one_line(tmp_path: Path, ema_avg: Run) -> None:
    """The line names the first files, and counts the others; another reason has its own line."""
    for number in range(6):
        (tmp_path / f"ckpt_{number}.pt").write_bytes(b"garbage")
    (tmp_path / "ckpt_6.pt").write_bytes(b"")
    done = ema_avg("plan", "ckpt_*.pt", *UNIFORM)
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 7 inputs cannot be used:"
    assert lines[1].startswith('  "ckpt_0.pt" is not a checkpoint: ')
    assert lines[1].endswith('; the same: "ckpt_1.pt", "ckpt_2.pt", "ckpt_3.pt" and 2 more')
    assert lines[2] == '  "ckpt_6.pt" is empty'


def test_a_key_for_files_without_keys_is_left_out(tmp_path: Path, ema_avg: Run) -> None:
    """The hint is the command without it."""
    write_series(tmp_path / "run", random_states(3), form="safetensors")
    done = ema_avg("plan", "run", "--key", "model", *UNIFORM)
    assert done.stderr.count("--key does not apply") == 1
    assert proposed(done.stderr) == ["ema-avg plan run --method uniform"]


def test_shards_that_repeat_a_tensor_are_one_example(tmp_path: Path, ema_avg: Run) -> None:
    """Without an index nothing says which is right; the hint says what would."""
    state = random_states(1)[0]
    for number in (1, 2, 3):
        write_series(tmp_path, [state], form="safetensors")[0].rename(
            tmp_path / f"model-0000{number}-of-00003.safetensors"
        )
    done = ema_avg("plan", ".", *UNIFORM)
    assert f"holds {len(state)} tensors in two shards or more, and has no index, such as" in done.stderr
    assert done.stderr.count("-of-00003") == 2
    assert "try: the index, *.index.json, says which are right" in done.stderr
