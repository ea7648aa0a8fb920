"""New BatchNorm statistics: how far they are from those before, and their bytes in the types of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ema_cli.dtypes import DType
from ema_cli.errors import InputRefused
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import BatchNormLayer, StatisticChange
from ema_cli.text import quoted
from ema_cli.training.batch_norm.norm_layers import MEAN, STATISTICS, VARIANCE, NormLayer

Buffers = Mapping[str, torch.Tensor]


def describe_layer(layer: NormLayer, before: Buffers) -> BatchNormLayer:
    """Return how the statistics of a layer differ from those ``before``."""
    now = layer.statistics() if layer.batches else before
    return BatchNormLayer(
        name=layer.names[0],
        kind=type(layer.module).__name__,
        channels=len(now[MEAN]),
        momentum=None if layer.module.momentum is None else _number(layer.module.momentum),
        batches=layer.batches,
        mean=_change(before[MEAN], now[MEAN]),
        variance=_change(before[VARIANCE], now[VARIANCE]),
    )


def _change(before: torch.Tensor, after: torch.Tensor) -> StatisticChange:
    old, new = before.cpu().double(), after.cpu().double()
    largest = (new - old).abs().max() if new.numel() else new.sum()
    return StatisticChange(
        norm_before=_number(old.norm()), norm_after=_number(new.norm()), largest_change=_number(largest)
    )


def _number(value: torch.Tensor | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def refuse_nonfinite(layer: NormLayer, statistics: Buffers) -> None:
    """Raise if a statistic of a layer has NaN or infinity.

    Raises:
        InputRefused: naming the layer.

    """
    for name in (MEAN, VARIANCE):
        wrong = int((~torch.isfinite(statistics[name])).sum())
        if wrong:
            raise InputRefused(
                f"the new {name} of layer {quoted(layer.names[0])} has NaN or infinity in {wrong:,} of "
                f"{statistics[name].numel():,} channels",
                hint="the data or the weights before it are not finite, or too large for the type",
            )


def stored_statistics(layers: Sequence[NormLayer], checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the statistics of layers by the names of their tensors in a checkpoint, as bytes in its types.

    Raises:
        InputRefused: one is not finite in its type, or the checkpoint lacks the mean or variance of a layer.

    """
    types = {layout.name: layout.dtype for layout in checkpoint.index.layouts}
    found: dict[str, bytes] = {}
    for layer in layers:
        statistics = layer.statistics()
        for statistic in STATISTICS:
            names = [name for name in layer.tensor_names(statistic) if name in types]
            if not names and statistic in (MEAN, VARIANCE):
                missing = quoted(layer.tensor_names(statistic)[0])
                raise InputRefused(f"{quoted(str(checkpoint.path))} has no {missing}")
            for name in names:
                converted = {**statistics, statistic: _converted(statistics[statistic], types[name])}
                refuse_nonfinite(layer, converted)
                found[name] = _bytes_of(converted[statistic])
    return found


def _converted(tensor: torch.Tensor, dtype: DType) -> torch.Tensor:
    stored: torch.dtype = getattr(torch, dtype.torch_name)
    return tensor.detach().to("cpu", stored)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
