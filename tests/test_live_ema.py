"""The live EMA class: the calls of the usual shadow class, and the weights of the command line's methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.weights.methods import Decay, Method
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline


def train_step(model: nn.Module, seed: int) -> None:
    """Move the weights of a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_the_usual_calls() -> None:
    """``register``, ``update``, ``apply_shadow`` and ``restore`` compute d E + (1 - d) theta, and restore exactly."""
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    ema.register()
    expected = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    for seed in range(20):
        train_step(model, seed)
        ema.update()
        for name, parameter in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ema.apply_shadow()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-6, atol=1e-6)
    ema.restore()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"decay": 0.9}, Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="first")),
        ({"half_life": 7, "init": "debias"}, Method(name="ema", decay=Decay.of_half_life(7), init="debias")),
        ({"decay": 0.9, "method": "ema-warmup"}, Method(name="ema-warmup", decay=Decay.of(0.9), warmup="tf")),
        ({"method": "uniform"}, Method(name="uniform")),
    ],
)
def test_methods_match_the_command_line(given: dict[str, Any], method: Method) -> None:
    """A live average over N steps equals the weighted sum that the command line computes for N checkpoints."""
    model = nn.Linear(3, 2)
    ema = EMA(model, dtype=torch.float64, **given)
    saved = []
    for seed in range(12):
        train_step(model, seed)
        ema.update()
        saved.append(model.weight.detach().double().clone())
    weights = solve(method, Timeline(count=12))
    expected = sum(weight * tensor for weight, tensor in zip(weights, saved, strict=True))
    torch.testing.assert_close(ema.shadow["weight"], expected, rtol=1e-12, atol=1e-12)
