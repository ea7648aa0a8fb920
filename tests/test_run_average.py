"""What the callbacks log of an average of checkpoints, without a trainer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ema_cli.training.callbacks.run_average import RunAverage


def test_warnings_are_logged_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The advice names keywords of Python, and commands as they are; it is logged when the training ends."""
    average = RunAverage(output=tmp_path / "ema.safetensors", every_n_saves=1, decay=0.5)
    with caplog.at_level(logging.WARNING):
        for step in (10, 20):
            path = tmp_path / f"step{step}.pt"
            torch.save(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(), path)
            average.add(str(path), step)
        assert not caplog.messages
        average.write()
    (advice,) = [message for message in caplog.messages if "batchnorm-averaged" in message]
    assert "recompute them: ema-avg update-bn OUT --model MODEL" in advice
