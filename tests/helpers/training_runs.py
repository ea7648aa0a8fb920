"""Real training runs of a fraction of a second: a small network that learns what another one computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.helpers.series import State

FEATURES = 32
CLASSES = 10


def trained(
    seed: int,
    *,
    saves: int = 12,
    every: int = 25,
    from_step: int = 0,
    start: State | None = None,
    rate: float = 0.1,
    schedule: Callable[[float], float] = lambda _: 1.0,
) -> list[State]:
    """Train by SGD with momentum; return the weights of ``saves`` checkpoints after step ``from_step``.

    Args:
        seed: of the initialization and of the batches; the data are always the same.
        saves: number of checkpoints.
        every: steps from one to the next.
        from_step: of the first checkpoint; 0 for the initialization itself.
        start: weights to begin with.
        rate: the largest learning rate.
        schedule: learning rate, relative to the largest, by the part of the training that is done.

    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, CLASSES))
    if start is not None:
        model.load_state_dict(start)
    batches = torch.Generator().manual_seed(seed + 1000)
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(7))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    states = []
    steps = from_step + every * (saves - 1)
    for step in range(steps + 1):
        if step >= from_step and (step - from_step) % every == 0:
            states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        optimizer.param_groups[0]["lr"] = rate * schedule(step / max(steps, 1))
        inputs = torch.randn(32, FEATURES, generator=batches)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), (inputs @ teacher).argmax(dim=1)).backward()
        optimizer.step()
    return states
