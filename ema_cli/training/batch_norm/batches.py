"""Batches of a user's data, and how a model is called with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ema_cli.errors import UsageError

_HINT = "a batch is a tensor, a tuple or list that begins with one, or a dict of what the model takes"


def model_input(batch: object, number: int) -> Any:  # noqa: ANN401 - whatever the model takes
    """Return what a model is called with: the batch, or the first element of a tuple or list.

    Args:
        batch: from the data.
        number: of the batch, from 1, for messages.

    Raises:
        UsageError: it is nothing that a model can be called with.

    """
    if isinstance(batch, list | tuple):
        if not batch:
            raise UsageError(f"batch {number:,} of the data is an empty {_kind(batch)}", hint=_HINT)
        first, where = batch[0], f"is a {_kind(batch)} that begins with a {_kind(batch[0])}"
    else:
        first, where = batch, f"is a {_kind(batch)}"
    if isinstance(first, Mapping):
        unnamed = next((key for key in first if not isinstance(key, str)), None)
        if unnamed is None:
            return first
        where += f" with a key of type {_kind(unnamed)}, which names no argument of the model"
    elif isinstance(first, torch.Tensor) and not first.numel():
        where = "has no elements, and would bring zeros into the mean"
    elif isinstance(first, torch.Tensor) or callable(getattr(first, "to", None)):
        return first
    raise UsageError(f"batch {number:,} of the data {where}", hint=_HINT)


def call(model: nn.Module, given: Any, device: torch.device | None) -> None:  # noqa: ANN401
    """Call a model with what ``model_input`` returned, moved to a device; a mapping has its arguments by name."""
    if isinstance(given, Mapping):
        model(**{name: _moved(value, device) for name, value in given.items()})
    else:
        model(_moved(given, device))


def samples_in(given: Any) -> int | None:  # noqa: ANN401
    """Return the first dimension of the first tensor; ``None`` if there is none."""
    values = given.values() if isinstance(given, Mapping) else [given]
    return next((len(value) for value in values if isinstance(value, torch.Tensor) and value.dim()), None)


def _moved(value: Any, device: torch.device | None) -> Any:  # noqa: ANN401
    """Return a value with the tensors in it on a device; ``None`` leaves them where they are."""
    if device is None:
        return value
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(inner, device) for inner in value)
    return value.to(device) if callable(getattr(value, "to", None)) else value


def _kind(value: object) -> str:
    return type(value).__name__
