"""What the tests of callbacks share: the weights after each step, and their EMA by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tests.helpers.live_training import Weights, folded


def ema_by_hand(states: Iterable[Weights], decay: float) -> Weights:
    """Return ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n``, in float64, as float32."""
    return {name: tensor.float() for name, tensor in folded(states, decay).items()}


def assert_weights(found: Mapping[str, torch.Tensor], expected: Weights) -> None:
    """Assert that tensors are equal up to the rounding of float32, and that there are no others."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def assert_same(found: Mapping[str, torch.Tensor], expected: Weights) -> None:
    """Assert that tensors are equal bit for bit, and that there are no others."""
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def with_weights(model: Any, weights: Weights) -> Any:
    """Return a model with other weights."""
    model.load_state_dict(weights, strict=False)
    return model
