"""The values that the live EMA class is made with: read, checked, and named as keywords in errors."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any, get_args

import torch

from ema_cli.errors import UsageError
from ema_cli.options.declaration import read_values
from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.options.weighting import WeightOptions
from ema_cli.text import quoted
from ema_cli.training.live.model_tensors import BufferRule
from ema_cli.weights.methods import Method
from ema_cli.weights.updates import LIVE_METHODS

_DTYPES = (torch.float32, torch.float64)


def live_methods(given: Mapping[str, Any]) -> tuple[Method, ...]:
    """Return the methods that the weighting options among the keywords of ``EMA`` choose, one per average.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other, or choose a method that needs later weights too.

    """
    with keywords_in_errors():
        options = WeightOptions(**read_values(WeightOptions, given))
        for name in options.method_names:
            _refuse_other_method(name)
        options.check_weights()
        if options.lacks_decay:
            raise UsageError("EMA needs a decay", hint="--decay 0.999, --half-life 1000 or --sigma-rel 0.1")
        return tuple(options.expand())


def _refuse_other_method(name: str) -> None:
    if name not in LIVE_METHODS:
        hint = f"save checkpoints and average them; during training: {', '.join(LIVE_METHODS)}"
        raise UsageError(f"--method {name} cannot be computed during training", hint=hint)


def whole_number(keyword: str, value: object, *, least: int) -> int:
    """Return a whole number of at least ``least``.

    Raises:
        ema_cli.errors.UsageError: it is none.

    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{keyword}={quoted(str(value))} is not a whole number") from error
    if number < least:
        raise UsageError(f"{keyword}={number} must be at least {least}")
    return number


def buffer_rule(keyword: str, value: BufferRule) -> BufferRule:
    """Return how buffers are treated.

    Raises:
        ema_cli.errors.UsageError: it is none of the rules.

    """
    if value not in get_args(BufferRule):
        raise UsageError(f"{keyword}={quoted(str(value))} is none of {', '.join(get_args(BufferRule))}")
    return value


def float_type(value: torch.dtype | None) -> torch.dtype | None:
    """Return the type of the averages.

    Raises:
        ema_cli.errors.UsageError: it is none, or a narrow one, in which 1 - d would vanish.

    """
    if value is not None and value not in _DTYPES:
        raise UsageError(
            f"dtype={quoted(str(value))}: averages are kept in torch.float32 or torch.float64",
            hint="leave it out: then 16-bit parameters have float32 averages, and the model gets them rounded",
        )
    return value


def usable_device(value: torch.device | str | int | None) -> torch.device | None:
    """Return a device on which tensors have values.

    Raises:
        ema_cli.errors.UsageError: there is no such device here.

    """
    if value is None:
        return None
    try:
        device = torch.empty(0, device=value).device
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device={quoted(str(value))} cannot be used: {reason}") from error
    if device.type == "meta":
        raise UsageError('device="meta" cannot be used: its tensors have no values')
    return device


def model_of(value: object) -> torch.nn.Module:
    """Return the model.

    Raises:
        ema_cli.errors.UsageError: it is none.

    """
    if not isinstance(value, torch.nn.Module):
        raise UsageError(f"EMA needs a torch.nn.Module, not {quoted(type(value).__name__)}", hint="EMA(model, 0.999)")
    return value
