"""The rows of the tables that HTML and Markdown show, as text.

Text from files goes through ``safe_text``; the renderers escape it for HTML or Markdown.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

from ema_cli.options.config_used import ConfigUsed
from ema_cli.records.series_evidence import Evidence
from ema_cli.report import words
from ema_cli.report.model import Average, Input, Report, Tensor
from ema_cli.text import human_bytes, numbered, percent, quoted, safe_text

Row = TypeVar("Row")
_UNDEFINED = "-"
ROLES = {"average": "previous average", "again": "its last, read again"}
"""Inputs that are not new checkpoints, by their role."""


@dataclass(frozen=True, slots=True, kw_only=True)
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


def share_rows(report: Report, average: Average) -> list[ShareRow]:
    """Return a row for each input, in fold order."""
    largest = max(map(abs, average.weights), default=0) or 1.0
    names = input_names(report)
    rates = [f"{rate:.3g}" for rate in average.diagnostics.implied_lr] if average.continued is None else []
    return [
        ShareRow(
            name=names[i],
            step=_UNDEFINED if known.step is None else f"{known.step:,}",
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
    pairs = [
        ("effective checkpoints", words.effective(diagnostics)),
        ("mean age", words.mean_age(diagnostics)),
        ("first / last share", f"{percent(diagnostics.first)} / {percent(diagnostics.last)}"),
        ("median drift", median_drift(average)),
        ("parameters", f"{report.summary.parameters:,}"),
        ("size", words.output_size(average.output)),
    ]
    if diagnostics.window_ratio_u is not None:
        pairs.insert(2, ("u = median gap x (1-d)", f"{diagnostics.window_ratio_u:.3g}"))
    return pairs


def tensors_with_drift(average: Average) -> list[Tensor]:
    """Return the tensors with a drift, tied ones once, in model order."""
    return [tensor for tensor in average.tensors if tensor.drift is not None and tensor.tied_to is None]


def by_drift(average: Average) -> list[Tensor]:
    """Return the tensors with a drift, tied ones once, smallest drift first."""
    return sorted(tensors_with_drift(average), key=lambda tensor: tensor.drift or 0)


def median_drift(average: Average) -> str:
    """Return the median of the drifts of all tensors."""
    tensors = by_drift(average)
    return percent(tensors[len(tensors) // 2].drift or 0) if tensors else _UNDEFINED


TENSOR_TITLES = ("tensor", "type", "shape", "drift", "cosine", "norm", "spread")


def tensor_row(tensor: Tensor) -> list[str]:
    """Return the cells of a tensor: name, type, shape, drift, cosine, norm, spread."""
    name = safe_text(tensor.name) + (f" = {safe_text(tensor.tied_to)}" if tensor.tied_to else "")
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    drift = _number(tensor.drift, percent) if tensor.action == "averaged" else tensor.action
    drift = "kept" if tensor.kept else drift
    return [name, tensor.dtype, shape, drift, *map(_number, (tensor.cosine, tensor.norm, tensor.spread))]


def _number(value: float | None, show: Callable[[float], str] = "{:.6g}".format) -> str:
    return _UNDEFINED if value is None else show(value)


INPUT_TITLES = ("input", "step", "from", "format", "size", "fingerprint")


def input_rows(report: Report) -> list[list[str]]:
    """Return the cells of every input."""
    paths = numbered([safe_text(known.path) for known in report.inputs])
    return [
        [
            path,
            _UNDEFINED if known.step is None else f"{known.step:,}",
            safe_text(known.step_source or _UNDEFINED),
            known.format,
            human_bytes(known.bytes),
            f"sha256 {known.sha256}" if known.sha256 else known.fingerprint,
        ]
        for path, known in zip(paths, report.inputs, strict=True)
    ]


EVIDENCE_TITLES = ("checkpoint", "nearest", "distance", "to the previous", "cosine to the nearest")


def evidence_rows(report: Report, evidence: Evidence) -> list[list[str]]:
    """Return the sampled distances of every checkpoint that was sampled: relative to the weights."""
    inputs = input_names(report)
    names = [inputs[i] for i in evidence.inputs]
    rows = []
    for number, (name, distances, cosine) in enumerate(
        zip(names, evidence.distances, evidence.nearest_cosines, strict=True)
    ):
        others = [other for other in range(len(names)) if other != number]
        nearest = min(others, key=distances.__getitem__, default=None)
        rows.append(
            [
                name,
                _UNDEFINED if nearest is None else names[nearest],
                _UNDEFINED if nearest is None else percent(distances[nearest]),
                percent(distances[number - 1]) if number else _UNDEFINED,
                _number(cosine, "{:.4f}".format),
            ]
        )
    return rows


def output_rows(report: Report) -> list[list[str]]:
    """Return path, size and digest of every output; for a folder also its side files."""
    rows = []
    for output in (average.output for average in report.averages):
        side_files = words.side_files(output)
        size = words.output_size(output) + (f", with {side_files}" if side_files else "")
        rows.append([safe_text(words.output_path(output)), size, output.sha256])
    return rows


def timing_rows(report: Report) -> list[tuple[str, str]]:
    """Return bytes, seconds and memory of the run: name and value."""
    summary = report.summary
    rows = [
        ("read", human_bytes(summary.bytes_read)),
        ("written", human_bytes(summary.bytes_written)),
        ("whole run", f"{summary.seconds:.2f} s"),
        ("fold", f"{summary.fold_seconds:.2f} s"),
        ("fold throughput", f"{human_bytes(summary.throughput_bytes_per_second)}/s"),
    ]
    if summary.peak_memory_bytes is not None:
        rows.append(("peak memory", human_bytes(summary.peak_memory_bytes)))
    return rows


COMPARISON_TITLES = ("average", "first", "last", "effective", "mean age", "median drift")


def comparison_rows(report: Report) -> list[list[str]]:
    """Return a row for each average of a run."""
    return [
        [
            label(average),
            percent(average.diagnostics.first),
            percent(average.diagnostics.last),
            f"{average.diagnostics.effective_checkpoints:.1f}",
            words.mean_age(average.diagnostics),
            median_drift(average),
        ]
        for average in report.averages
    ]


def environment_line(report: Report) -> str:
    """Return versions, platform and device in one line."""
    versions = report.environment
    torch = f", torch {versions.torch}" if versions.torch else ""
    return (
        f"ema-avg {report.tool.version}, Python {versions.python}, numpy {versions.numpy}{torch}, "
        f"safetensors {versions.safetensors}, {versions.platform}, {versions.device}"
    )


def command_line(argv: Sequence[str]) -> str:
    """Return the command line, quoted for a shell; empty for a call from Python."""
    return safe_text(shlex.join(["ema-avg", *argv[1:]]), limit=4000, whole=False) if argv else ""


def config_line(config: ConfigUsed | None) -> str:
    """Return which options the configuration file set; empty if none."""
    if config is None or not config.options:
        return ""
    return f"Options from {quoted(config.path)}: {', '.join(map(safe_text, config.options))}."


def tensor_counts(report: Report) -> str:
    """Return how many tensors were averaged and copied."""
    return words.tensor_counts(tensor.action for tensor in report.averages[0].tensors)
