"""The judge of the averages: the checkpoints as their makers load them, folded in a reference implementation."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.helpers.exact import FORMATS, ema_shares, rounded
from tests.helpers.program import Run
from tests.helpers.series import State, reference_average, same_bits

DECAY = 0.75
"""Of every average here: its weights are exact in float64, so that the reference fold has one result."""


def fold(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """Return ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n``, summed in float64 and rounded once.

    Integers and booleans are those of the last state.
    """
    weights = [float(share) for share in ema_shares(len(states), DECAY)]
    return {name: _fold([state[name].detach() for state in states], weights) for name in states[-1]}


def _fold(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    last = tensors[-1]
    if not last.is_floating_point():
        return last
    total = reference_average(tensors, weights)
    if last.dtype is torch.bfloat16:  # torch would round twice
        exact = [rounded(value, FORMATS["BF16"]) for value in total.ravel().tolist()]
        return torch.tensor(exact, dtype=torch.bfloat16).reshape(last.shape)
    return torch.from_numpy(total).to(last.dtype)


def assert_fold(found: Mapping[str, torch.Tensor], states: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Assert that ``found`` has the tensors of the states, and that each is their average to the last bit."""
    expected = fold(states)
    assert set(found) == set(expected)
    wrong = [name for name, tensor in expected.items() if not same_bits(found[name].detach(), tensor)]
    assert not wrong
    moved = [name for name, tensor in expected.items() if not torch.equal(tensor, states[-1][name])]
    assert moved, "states that do not differ prove nothing"


def average(ema_avg: Run, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``ema-avg`` with the decay of the judge; it must succeed."""
    done = ema_avg(*arguments, "--decay", DECAY, **environment)
    assert done.returncode == 0, done.stderr
    return done


def names_in(folder: Path) -> set[str]:
    """Return the names of the files of a folder."""
    return {path.name for path in folder.iterdir()}


def disturb(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter a little, as a step of training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)


LARGE = 3_300_000
"""Numbers in the large model: 13 MB, more than one part of an upload."""


def states_of(count: int, elements: int) -> list[State]:
    """Return states of a model with one matrix of that size."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"w": torch.randn(elements // 100, 100, generator=generator), "b": torch.randn(5, generator=generator)}
        for _ in range(count)
    ]
