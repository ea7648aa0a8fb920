"""One pass over a user's data that recomputes the BatchNorm statistics of a model with an average in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.swa_utils import AveragedModel

from ema_cli.errors import InputRefused, NothingNew, RunWarning, UsageError
from ema_cli.events import BatchDone, Listener
from ema_cli.report.model import BatchNormUpdate
from ema_cli.text import plural, quoted, shortlist
from ema_cli.training.batch_norm.batches import call, model_input, samples_in
from ema_cli.training.batch_norm.norm_layers import (
    NormLayer,
    norm_layers,
    other_norms,
    other_statistics,
    recomputing,
)
from ema_cli.training.batch_norm.statistic_changes import describe_layer, refuse_nonfinite
from ema_cli.training.batch_norm.stored_weights import StoredWeights
from ema_cli.training.batch_norm.strict_load import load_strictly
from ema_cli.training.live.model_tensors import unwrapped

Blame = Callable[[Literal["model", "data"]], AbstractContextManager[None]]
"""Makes the context in which one of the user's codes runs."""
_END = object()


@dataclass(frozen=True, kw_only=True)
class UserCode:
    """The model and the data of the user: how they are made, and what they are called."""

    make_model: Callable[[], nn.Module]
    make_data: Callable[[], Iterable[Any]]
    model: str
    data: str
    blame: Blame = lambda _: nullcontext()
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes the context of everything from the making of the model to the last batch."""


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """The result of the pass."""

    layers: tuple[NormLayer, ...]
    """The layers with new statistics."""
    update: BatchNormUpdate
    warnings: tuple[RunWarning, ...]


def recompute(
    code: UserCode, weights: StoredWeights, *, batches: int | None, device: torch.device | None, listener: Listener
) -> Recomputed:
    """Load weights into the model, recompute its statistics on at most ``batches`` batches, and describe the change.

    Raises:
        UsageError: there are no batches, or what there is cannot be used.
        InputRefused: the weights do not fit the model, or a new statistic is not finite.
        NothingNew: the model has no BatchNorm statistics.

    """
    with code.around(), code.blame("model"):
        model, layers = _loaded(code, weights, device)
        before = [layer.copied() for layer in layers]
        with recomputing(model, layers):
            done, samples = _pass(code, model, batches=batches, device=device, listener=listener)
            _refuse_unusable(code, layers, done)
        reached = tuple(layer for layer in layers if layer.batches)
        warnings = tuple(_warnings(code, model, layers, done=done, wanted=batches))
        described = tuple(describe_layer(layer, old) for layer, old in zip(layers, before, strict=True))
        for layer, old in zip(layers, before, strict=True):
            if layer not in reached:
                layer.restore(old)
    place = None if device is None else str(device)
    update = BatchNormUpdate(
        model=code.model, data=code.data, device=place, batches=done, samples=samples, layers=described
    )
    return Recomputed(layers=reached, update=update, warnings=warnings)


def _loaded(code: UserCode, weights: StoredWeights, device: torch.device | None) -> tuple[nn.Module, list[NormLayer]]:
    """Return the model with the weights in it, and its layers with statistics."""
    model = unwrapped(code.make_model())
    if isinstance(model, AveragedModel):
        model = unwrapped(model.module)
    load_strictly(model, weights)
    layers = norm_layers(model)
    if not layers:
        raise _nothing_to_do(model, code, weights)
    if device is not None:
        model.to(device)
    return model, layers


def _pass(
    code: UserCode, model: nn.Module, *, batches: int | None, device: torch.device | None, listener: Listener
) -> tuple[int, int | None]:
    """Call the model with each batch; return the number of batches, and of samples if it is known."""
    with code.blame("data"):
        data = code.make_data()
        iterator = iter(data)
        total = _length(data, batches)
    counts: list[int | None] = []
    while batches is None or len(counts) < batches:
        with code.blame("data"):
            batch = next(iterator, _END)
        if batch is _END:
            break
        given = model_input(batch, len(counts) + 1)
        call(model, given, device)
        counts.append(samples_in(given))
        listener(BatchDone(done=len(counts), total=total))
    known = [count for count in counts if count is not None]
    return len(counts), sum(known) if len(known) == len(counts) else None


def _refuse_unusable(code: UserCode, layers: list[NormLayer], done: int) -> None:
    """Raise if there are no new statistics, or one is not finite."""
    if not done:
        raise UsageError(
            f"the data {quoted(code.data)} has no batches",
            hint="a generator is used up after one pass; return a new one",
        )
    if not any(layer.batches for layer in layers):
        raise UsageError(
            f"no BatchNorm layer of the model {quoted(code.model)} saw a batch",
            hint="they are not called, or train() of the model keeps them in evaluation mode",
        )
    for layer in layers:
        refuse_nonfinite(layer, layer.statistics())


def _length(data: object, batches: int | None) -> int | None:
    """Return the number of batches that will be used, if the data has a length."""
    try:
        length = len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return batches
    return length if batches is None else min(length, batches)


def _warnings(
    code: UserCode, model: nn.Module, layers: list[NormLayer], *, done: int, wanted: int | None
) -> Iterable[RunWarning]:
    if wanted is not None and done < wanted:
        yield RunWarning(
            code="data-ended", message=f"the data {quoted(code.data)} ended after {done:,} of {wanted:,} batches"
        )
    unreached = [quoted(layer.names[0]) for layer in layers if not layer.batches]
    if unreached:
        yield RunWarning(
            code="layers-unreached",
            message=f"{plural(len(unreached), 'BatchNorm layer')} saw no batch, and the statistics were kept: "
            f"{shortlist(unreached)}",
            hint="they are not called, or train() of the model keeps them in evaluation mode",
        )
    others = other_statistics(model, layers)
    if others:
        yield RunWarning(code="statistics-kept", message=_not_recomputed(others))


def _not_recomputed(others: Mapping[str, nn.Module]) -> str:
    named = shortlist(f"{quoted(name)} ({type(module).__name__})" for name, module in others.items())
    return (
        f"the running statistics of {plural(len(others), 'layer')} are not recomputed, as only those of torch's "
        f"BatchNorm layers are: {named}"
    )


def _nothing_to_do(model: nn.Module, code: UserCode, weights: StoredWeights) -> InputRefused | NothingNew:
    others = other_statistics(model, ())
    if not all(isinstance(module, _InstanceNorm) for module in others.values()):
        return InputRefused(_not_recomputed(others), hint="return the plain model, not a TorchScript one")
    norms = [f"{name} {count:,}" for name, count in sorted(other_norms(model).items())]
    named = f" (it has {', '.join(norms)})" if norms else ""
    return NothingNew(
        f"the model {quoted(code.model)} has no BatchNorm layers with running statistics{named}: there is nothing to "
        f"recompute, and {weights.label} can be used unchanged"
    )
