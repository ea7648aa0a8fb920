"""The rows of the tables that HTML and Markdown show, as text.

Text from files goes through ``safe_text``; the renderers escape it for HTML or Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TypeVar, cast

from ema_cli.record import record
from ema_cli.records.series_evidence import Evidence
from ema_cli.report import words
from ema_cli.report.model import Average, BatchNormUpdate, Input, Report, Tensor
from ema_cli.text import cosine, number, numbered, percent, safe_text
from ema_cli.weights.methods import SPECS, MethodName

Row = TypeVar("Row")
UNDEFINED = "-"
ROLES = {"average": "previous average", "again": "its last, read again"}
"""Inputs that are not new checkpoints, by their role."""


@record
class ShareRow:
    """One input of an average."""

    name: str
    step: str
    share: str
    width: float
    """Share divided by the largest share, in percent: the length of a bar."""
    implied_lr: str


def cut_middle(rows: Sequence[Row], most: int, gap: Callable[[int], Row]) -> list[Row]:
    """Return at most ``most`` rows; the middle of more is replaced by ``gap`` of their number."""
    half = most // 2
    return list(rows) if len(rows) <= most else [*rows[:half], gap(len(rows) - 2 * half), *rows[len(rows) - half :]]


def more_shares(count: int) -> ShareRow:
    """Return the row in place of ``count`` others; the JSON report has all of them."""
    return ShareRow(name=f"… {count:,} more", step="", share="", width=0, implied_lr="")


def label(average: Average) -> str:
    """Return the file name of an average, which distinguishes it from the others of a run."""
    return safe_text(PurePath(average.output.path).name)


def short_label(average: Average) -> str:
    """Return the file name of an average without its suffix, for charts and columns."""
    return safe_text(PurePath(average.output.path).name.removesuffix(".safetensors"))


def share_rows(report: Report, average: Average) -> list[ShareRow]:
    """Return a row for each input, in fold order."""
    largest = max(map(abs, average.weights), default=0) or 1.0
    names = input_names(report)
    rates = [number(rate) for rate in average.diagnostics.implied_lr] if average.continued is None else []
    return [
        ShareRow(
            name=names[i],
            step=UNDEFINED if known.step is None else f"{known.step:,}",
            share=percent(weight),
            width=round(max(100 * (weight / largest), 0.0), 1),
            implied_lr=rates[i] if rates else "",
        )
        for i, (known, weight) in enumerate(zip(report.inputs, average.weights, strict=True))
    ]


def input_names(report: Report) -> list[str]:
    """Return the name of every input, with its role unless it is a new checkpoint."""
    return numbered([_input_name(known) for known in report.inputs])


def _input_name(known: Input) -> str:
    name = safe_text(PurePath(known.path).name)
    return f"{name} ({ROLES[known.role]})" if known.role in ROLES else name


def facts(report: Report, average: Average) -> list[tuple[str, str]]:
    """Return the key figures of an average: name and value."""
    diagnostics = average.diagnostics
    shares = ("share of the first / last", f"{percent(diagnostics.first)} / {percent(diagnostics.last)}")
    drift = ("median drift", median_drift(average))
    compared = [shares, drift] if tensors_with_drift(average) else [shares]
    return [
        *(compared if len(diagnostics.implied_lr) > 1 else []),
        ("parameters", f"{report.summary.parameters:,}"),
        ("size", words.output_size(average.output)),
    ]


def method_rows(average: Average) -> list[tuple[str, str]]:
    """Return the method of an average with its formula and numbers: name and value."""
    method, diagnostics = average.method, average.diagnostics
    spec = SPECS.get(cast("MethodName", method.name))
    effective = f"1 / (sum of squared shares) = {words.effective(diagnostics)}"
    pairs = [
        ("method", words.definition(method, diagnostics.mean_age_unit)),
        ("formula", spec.definition if spec else ""),
        ("effective checkpoints", effective if len(diagnostics.implied_lr) > 1 else ""),
        ("reconstruction", words.reconstruction(method, diagnostics)),
    ]
    return [(name, value) for name, value in pairs if value]


def tensors_with_drift(average: Average) -> list[Tensor]:
    """Return the tensors with a drift, tied ones once, in model order."""
    return [tensor for tensor in average.tensors if tensor.drift is not None and tensor.tied_to is None]


def by_drift(average: Average) -> list[Tensor]:
    """Return the tensors with a drift, tied ones once, smallest drift first."""
    return sorted(tensors_with_drift(average), key=lambda tensor: tensor.drift or 0)


def median_drift(average: Average) -> str:
    """Return the median of the drifts of all tensors."""
    tensors = by_drift(average)
    return percent(tensors[len(tensors) // 2].drift or 0) if tensors else UNDEFINED


TENSOR_TITLES = ("tensor", "type", "shape", "drift", "cosine", "norm", "spread")


def tensor_row(tensor: Tensor, inner_name: str | None = None) -> list[str]:
    """Return the cells of a tensor: name, type, shape, drift, cosine, norm, spread.

    The name may be shortened to ``inner_name`` where something else states its beginning.
    """
    tied = f" = {safe_text(tensor.tied_to)}" if tensor.tied_to else ""
    name = safe_text(tensor.name if inner_name is None else inner_name) + tied
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    drift = _number(tensor.drift, percent) if tensor.action == "averaged" else tensor.action
    drift = "kept" if tensor.kept else drift
    numbers = [_number(tensor.cosine, cosine), _number(tensor.norm), _number(tensor.spread)]
    return [name, tensor.dtype, shape, drift, *numbers]


def _number(value: float | None, show: Callable[[float], str] = number) -> str:
    return UNDEFINED if value is None else show(value)


EVIDENCE_TITLES = ("checkpoint", "nearest", "distance", "to the previous", "cosine to the nearest")


def evidence_rows(report: Report, evidence: Evidence) -> list[list[str]]:
    """Return the sampled distances of every checkpoint that was sampled: relative to the weights."""
    inputs = input_names(report)
    names = [inputs[i] for i in evidence.inputs]
    rows = []
    for position, (name, distances, nearest_cosine) in enumerate(
        zip(names, evidence.distances, evidence.nearest_cosines, strict=True)
    ):
        others = [other for other in range(len(names)) if other != position]
        nearest = min(others, key=distances.__getitem__, default=None)
        rows.append(
            [
                name,
                UNDEFINED if nearest is None else names[nearest],
                UNDEFINED if nearest is None else percent(distances[nearest]),
                percent(distances[position - 1]) if position else UNDEFINED,
                _number(nearest_cosine, cosine),
            ]
        )
    return rows


COMPARISON_TITLES = ("average", "first share", "last share", "effective", "mean age", "median drift")


def comparison_rows(report: Report) -> list[list[str]]:
    """Return a row for each average of a run."""
    return [
        [
            short_label(average),
            percent(average.diagnostics.first),
            percent(average.diagnostics.last),
            number(average.diagnostics.effective_checkpoints),
            words.mean_age(average.diagnostics),
            median_drift(average),
        ]
        for average in report.averages
    ]


STATISTICS_TITLES = (
    *("layer", "channels", "batches"),
    *("mean before", "mean after", "largest change", "variance before", "variance after", "largest change"),
)


def statistics_rows(update: BatchNormUpdate) -> list[list[str]]:
    """Return the cells of every BatchNorm layer: its norms before and after, and the largest change of an element."""
    return [
        [
            f"{safe_text(layer.name) or '(the model)'} ({safe_text(layer.kind)})",
            f"{layer.channels:,}",
            f"{layer.batches:,}" if layer.batches else "0, kept",
            *map(_number, (layer.mean.norm_before, layer.mean.norm_after, layer.mean.largest_change)),
            *map(_number, (layer.variance.norm_before, layer.variance.norm_after, layer.variance.largest_change)),
        ]
        for layer in update.layers
    ]


def tensor_counts(report: Report) -> str:
    """Return how many tensors were averaged and copied."""
    return words.tensor_counts(tensor.action for tensor in report.averages[0].tensors)
