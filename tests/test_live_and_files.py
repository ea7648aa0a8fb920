"""A live EMA of every training step against what the command line makes of the checkpoint files of the same run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ema_cli import EMA
from tests.helpers.program import Run, forked

pytestmark = pytest.mark.slow
DECAY = 0.99
EVERY = 10
STEPS = 300
PER_STEP_ERROR = 0.08
"""Largest distance of ``--per step``, relative to that of the last checkpoint; u = 0.1 predicts about 0.03."""
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run: its live averages, a fold of every step by hand, and a program that runs beside its checkpoints."""

    live: Weights
    by_hand: Weights
    each_tenth: Weights
    """A live average that only looks at the steps of the checkpoints."""
    ema_avg: Run
    folder: Path
    """``run/`` has the checkpoints from the first one after step 0 on, ``whole/`` that of step 0 too."""

    def averaged(self, run: str, *options: object) -> Weights:
        """Return the average that the command line makes of the files of a run."""
        output = self.folder / "average.safetensors"
        done = self.ema_avg(run, *options, "--dtype", "float64", "--force", "-o", output)
        assert done.returncode == 0, done.stderr
        return load_file(output)

    def off(self, weights: Weights) -> float:
        """Return the distance of some weights from the live EMA, relative to that of the last checkpoint."""
        last = load_file(self.folder / "run" / f"step_{STEPS}.safetensors")
        return distance(weights, self.live) / distance(last, self.live)


def distance(a: Weights, b: Weights) -> float:
    """Return ||a - b|| over all tensors together, which have the same names."""
    assert set(a) == set(b)
    return norm({name: a[name].double() - b[name].double() for name in b})


def norm(weights: Weights) -> float:
    """Return ||a|| over all tensors together."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in weights.values()))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Train a small network with a live EMA of every step, saving a checkpoint at every tenth."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    teacher = torch.randn(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    live = EMA(model, DECAY, dtype=torch.float64)
    each_tenth = EMA(model, DECAY, every=EVERY, dtype=torch.float64)
    live.register()
    each_tenth.register()
    by_hand = {name: value.double() for name, value in model.state_dict().items()}
    save(model, folder / "whole", 0)
    for step in range(1, STEPS + 1):
        inputs = torch.randn(16, 16)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), (inputs @ teacher).argmax(dim=1)).backward()
        optimizer.step()
        live.update()
        each_tenth.update()
        for name, value in model.state_dict().items():
            by_hand[name] = DECAY * by_hand[name] + (1 - DECAY) * value.double()
        if step % EVERY == 0:
            save(model, folder / "run", step)
            save(model, folder / "whole", step)
    return Training(
        live=live.shadow, by_hand=by_hand, each_tenth=each_tenth.shadow, ema_avg=forked(folder), folder=folder
    )


def save(model: nn.Module, folder: Path, step: int) -> None:
    """Write one checkpoint."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / f"step_{step}.safetensors")


def test_the_live_average_is_the_fold_of_every_step(training: Training) -> None:
    """In float64 the class and a loop by hand agree to the last digits."""
    assert distance(training.live, training.by_hand) <= 1e-12 * norm(training.by_hand)


@pytest.mark.parametrize("run", ["run", "whole"])
def test_the_files_give_the_live_average_per_step_only(training: Training, run: str) -> None:
    """``--per step`` comes close to the live EMA, ``ema-hold`` less; the same decay per checkpoint is far away."""
    per_step = training.off(training.averaged(run, "--per", "step", "--decay", DECAY))
    hold = training.off(training.averaged(run, "--method", "ema-hold", "--decay", DECAY))
    literal = training.off(training.averaged(run, "--decay", DECAY))
    assert per_step < PER_STEP_ERROR
    assert per_step < hold < 0.3
    assert literal > 1.5


def test_a_live_average_of_each_tenth_step_is_ema_hold_of_the_files(training: Training) -> None:
    """``every=k`` uses the decay that k steps mean: exactly ``ema-hold`` over checkpoints of those steps."""
    held = training.averaged("whole", "--method", "ema-hold", "--decay", DECAY)
    assert distance(held, training.each_tenth) <= 1e-12 * norm(held)
