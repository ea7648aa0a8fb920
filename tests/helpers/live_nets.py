"""A small network with layers that cannot be halved, and weights for it that are the same in every process."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = (1, 2, 3)
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.|^module\.")


class UnevenNet(nn.Module):
    """Layers of 5 and 1 rows; two layers share their weights, one parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first: nn.Module = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 5)
        self.third: nn.Module = nn.Linear(5, 5, bias=False)
        self.third.weight = self.second.weight
        self.last = nn.Linear(5, 1)
        self.norm.bias.requires_grad_(False)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return one number for each row."""
        found: torch.Tensor = self.last(self.third(self.second(self.norm(self.first(numbers))).tanh()))
        return found


def rows() -> torch.Tensor:
    """Return the input of every pass; shape [6, 7]."""
    return torch.linspace(-1, 1, 42).reshape(6, 7)


def numbers(name: str, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Return the weights of a parameter after a step."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    return torch.randn(tuple(shape), generator=generator)


def plain_name(name: str) -> str:
    """Return the name of a parameter without wrappers."""
    return _WRAPPERS.sub("", name)


@torch.no_grad()
def set_weights(model: nn.Module, step: int) -> None:
    """Set the weights that a model has after a step; of a distributed tensor each process takes its part."""
    for name, parameter in model.named_parameters():
        new = numbers(plain_name(name), step, parameter.shape)
        if hasattr(parameter, "placements"):
            from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - takes half a second

            mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
            new = distribute_tensor(new, mesh, placements, src_data_rank=None)
        parameter.copy_(new)


def look(model: nn.Module) -> torch.Tensor:
    """Return what a model computes without gradients, as an evaluation between training steps does."""
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(rows())
    model.train()
    return found


def averaged(steps: Sequence[int], decay: float = 0.5) -> UnevenNet:
    """Return the network with the average of its weights after the steps, as torch's own class computes it."""
    model = UnevenNet()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for step in steps:
        set_weights(model, step)
        average.update_parameters(model)
    found = average.module
    assert isinstance(found, UnevenNet)
    found.norm.bias.data.copy_(model.norm.bias)  # frozen: AveragedModel averages it all the same
    return found
