"""Trainings in miniature for the live EMA, and what torch is asked to do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Weights = dict[str, torch.Tensor]


def move_weights(model: nn.Module, seed: int) -> None:
    """Move all parameters by random numbers, as a training step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def weights_of(model: nn.Module) -> Weights:
    """Return copies of what is averaged by default: the parameters, and the statistics of BatchNorm."""
    statistics = (one for one in model.named_buffers() if one[0].endswith(("running_mean", "running_var")))
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *statistics)}


def folded(history: Iterable[Mapping[str, torch.Tensor]], decay: float) -> Weights:
    """Return d E + (1 - d) theta over the weights of all steps, the first ones as E_1, in 64 bits."""
    average: Weights = {}
    for weights in history:
        for name, tensor in weights.items():
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float64))
            average[name] = decay * average[name] + (1 - decay) * wide if name in average else wide
    return average


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Raise if tensors of the same names differ by more than a tolerance."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wide = found[name].detach().to(tensor.dtype)
        torch.testing.assert_close(wide, tensor, rtol=tolerance, atol=tolerance)


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise if tensors of the same names do not have the same bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert bytes_of(found[name]) == bytes_of(tensor), name


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, so that NaN equals NaN and 0 does not equal -0."""
    flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return flat.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class Watch(TorchDispatchMode):
    """Reports every call of an operator of torch, and may replace it or raise."""

    def __init__(self, seen: Callable[[str, tuple[Any, ...]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Report a call, then carry it out."""
        self.seen(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))
