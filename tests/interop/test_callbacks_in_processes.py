"""The callbacks in two processes: one writes, all have the same average, and a resumed training continues it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.series import load
from tests.interop.ranks_of_callbacks import RANKS, STEPS
from tests.interop.trainings import assert_same, assert_weights, ema_by_hand

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("callbacks")
    command = [sys.executable, "-m", "tests.interop.ranks_of_callbacks", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def kept(folder: Path) -> list[Any]:
    """Return what each process stored."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", ["train_with_transformers", "train_with_lightning"])
def test_the_processes_have_one_average(name: str, trained: Path) -> None:
    """The first process alone writes the average of the checkpoints; the live average is the same in all of them."""
    first, second = kept(trained / name)
    assert_same(second["average"], first["average"])
    assert (first["written"], second["written"]) == (True, False)
    assert len(first["seen"]) == STEPS
    expected = ema_by_hand(first["seen"], 0.75)
    assert_weights(first["average"], expected)
    written = "ema.safetensors" if "lightning" in name else "ema/model.safetensors"
    assert_weights(load(trained / name / written), expected)
    assert first.get("loss") == second.get("loss")


def test_a_sharded_average_is_continued(trained: Path) -> None:
    """Under FSDP2 each process writes and loads its own part, so the parts differ."""
    (first, first_again), (second, second_again) = kept(trained / "keep_a_sharded_average")
    assert_same(first_again, first)
    assert_same(second_again, second)
    assert first["weight"].shape != second["weight"].shape or not torch.equal(first["weight"], second["weight"])
