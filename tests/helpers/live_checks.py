"""What the processes of distributed training record about a live EMA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from ema_cli import EMA
from ema_cli.errors import EmaAvgError
from tests.helpers.live_nets import STEPS, look


def part_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of what this process holds."""
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def parts_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of what this process holds of each parameter."""
    return {name: part_of(parameter) for name, parameter in model.named_parameters()}


def equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Compare tensors bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors put together from all processes."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


@contextmanager
def counted(into: list[int]) -> Iterator[None]:
    """Count the collectives that a block runs."""
    with CommDebugMode() as communication:
        yield
    into.append(communication.get_total_counts())


def error_of(call: Callable[[], Any]) -> str:
    """Return message and hint of the error that a call must raise."""
    try:
        call()
    except EmaAvgError as error:
        return f"{error.message} | {error.hint}"
    return "no error"


def after_an_error(model: nn.Module, failing: nn.Module, set_weights: Callable[[Any, int], None]) -> dict[str, Any]:
    """Raise in a layer while the average is applied, and look what the model holds then."""
    ema = EMA(model, 0.5)
    ema.register()
    set_weights(model, STEPS[-1])
    own = parts_of(model)

    def fail(*_: object) -> None:
        raise ArithmeticError

    hook = failing.register_forward_hook(fail)
    with suppress(ArithmeticError), ema.applied():
        look(model)
    hook.remove()
    return {"restored": equal(parts_of(model), own), "own": look(model)}
