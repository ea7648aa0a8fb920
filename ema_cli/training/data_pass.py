"""One pass over a user's data that recomputes the BatchNorm statistics of a model with an average in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ema_cli.errors import NothingNew, RunWarning, UsageError
from ema_cli.events import BatchDone, Listener
from ema_cli.report.model import BatchNormLayer, BatchNormUpdate
from ema_cli.text import plural, quoted, shortlist
from ema_cli.training.batches import call, model_input, samples_in
from ema_cli.training.norm_layers import NormLayer, has_instance_statistics, norm_layers, other_norms, recomputing
from ema_cli.training.statistic_changes import describe_layer, refuse_nonfinite
from ema_cli.training.stored_weights import StoredWeights
from ema_cli.training.strict_load import load_strictly

Blame = Callable[[Literal["model", "data"]], AbstractContextManager[None]]
"""Makes the context in which one of the user's codes runs."""
_INSTANCES = RunWarning(
    code="instancenorm-kept",
    message="the running statistics of InstanceNorm layers are not recomputed, as torch's update_bn does not either",
    hint="--buffers last for the average takes those of the last checkpoint",
)
_END = object()


@dataclass(frozen=True, kw_only=True)
class UserCode:
    """The model and the data of the user: how they are made, and what they are called."""

    make_model: Callable[[], nn.Module]
    make_data: Callable[[], Iterable[Any]]
    model: str
    data: str
    blame: Blame = lambda _: nullcontext()


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
    with code.blame("model"):
        model = code.make_model()
    layers = norm_layers(model)
    if not layers:
        raise _nothing_to_do(model, code, weights)
    load_strictly(model, weights)
    if device is not None:
        with code.blame("model"):
            model.to(device)
    before = [{name: buffer.clone() for name, buffer in layer.statistics().items()} for layer in layers]
    done, samples = _pass(code, model, layers, batches=batches, device=device, listener=listener)
    seen = [layer.batches for layer in layers]
    warnings = list(_warnings(code, model, layers, seen=seen, done=done, wanted=batches))
    for layer, count, old in zip(layers, seen, before, strict=True):
        if not count:
            layer.restore(old)
        refuse_nonfinite(layer, layer.statistics())
    described: tuple[BatchNormLayer, ...] = tuple(
        describe_layer(layer, old, batches=count) for layer, old, count in zip(layers, before, seen, strict=True)
    )
    place = None if device is None else str(device)
    update = BatchNormUpdate(
        model=code.model, data=code.data, device=place, batches=done, samples=samples, layers=described
    )
    reached = tuple(layer for layer, count in zip(layers, seen, strict=True) if count)
    return Recomputed(layers=reached, update=update, warnings=tuple(warnings))


def _pass(
    code: UserCode,
    model: nn.Module,
    layers: list[NormLayer],
    *,
    batches: int | None,
    device: torch.device | None,
    listener: Listener,
) -> tuple[int, int | None]:
    """Call the model with each batch; return the number of batches and of samples."""
    with code.blame("data"):
        data = code.make_data()
        iterator = iter(data)
    total = _length(data, batches)
    done, samples = 0, 0
    counted = True
    with recomputing(model, layers):
        while batches is None or done < batches:
            with code.blame("data"):
                batch = next(iterator, _END)
            if batch is _END:
                break
            given = model_input(batch, done + 1)
            with code.blame("model"):
                call(model, given, device)
            done += 1
            count = samples_in(given)
            counted, samples = counted and count is not None, samples + (count or 0)
            listener(BatchDone(done=done, total=total))
    if not done:
        raise UsageError(
            f"the data {quoted(code.data)} has no batches",
            hint="a generator is used up after one pass; return a new one",
        )
    return done, samples if counted else None


def _length(data: object, batches: int | None) -> int | None:
    """Return the number of batches that will be used, if the data has a length."""
    try:
        length = len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return batches
    return length if batches is None else min(length, batches)


def _warnings(
    code: UserCode, model: nn.Module, layers: list[NormLayer], *, seen: list[int], done: int, wanted: int | None
) -> Iterable[RunWarning]:
    if wanted is not None and done < wanted:
        yield RunWarning(
            code="data-ended", message=f"the data {quoted(code.data)} ended after {done:,} of {wanted:,} batches"
        )
    unreached = [quoted(layer.names[0]) for layer, count in zip(layers, seen, strict=True) if not count]
    if len(unreached) == len(layers):
        raise UsageError(
            "no BatchNorm layer has seen a batch: the model does not call them, or keeps them in evaluation mode",
            hint="they need training mode for the pass: look for eval() in train() or forward() of the model",
        )
    if unreached:
        yield RunWarning(
            code="layers-unreached",
            message=f"{plural(len(unreached), 'BatchNorm layer')} saw no batch and kept the statistics of the input: "
            f"{shortlist(unreached)}",
            hint="the model does not call them, or keeps them in evaluation mode",
        )
    if has_instance_statistics(model):
        yield _INSTANCES


def _nothing_to_do(model: nn.Module, code: UserCode, weights: StoredWeights) -> NothingNew:
    norms = [f"{name} {count:,}" for name, count in sorted(other_norms(model).items())]
    others = f" (it has {', '.join(norms)})" if norms else ""
    return NothingNew(
        f"the model {quoted(code.model)} has no BatchNorm layers with running statistics{others}, so there is nothing to "
        f"recompute: {weights.label} can be used unchanged"
    )
