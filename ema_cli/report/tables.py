"""What the pages show in tables, as text that is ready to be put there: one place decides what stands in a row.

Text from files goes through ``safe_text``; escaping for HTML or Markdown is the renderers' part.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ema_cli.report import words
from ema_cli.report.model import Average, Input, Report, Tensor
from ema_cli.text import human_bytes, percent, plural, safe_text

_UNDEFINED = "-"
ROLES = {"average": "an earlier average", "again": "its last checkpoint, again"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRow:
    """One input of an average."""

    name: str
    step: str
    share: str
    width: float
    """Share over the largest, in percent: the length of a bar."""
    implied_lr: str


GAP = ShareRow(name="…", step="", share="", width=0, implied_lr="")
"""Stands for rows that are left out."""


def label(average: Average) -> str:
    """Name an average among others: by its file."""
    return safe_text(PurePath(average.output.path).name)


def share_rows(report: Report, average: Average) -> list[ShareRow]:
    """Return a row for each input, in fold order."""
    largest = max(average.weights) or 1.0
    rates = [f"{rate:.3g}" for rate in average.diagnostics.implied_lr] if average.continued is None else []
    return [
        ShareRow(
            name=input_name(known),
            step=_UNDEFINED if known.step is None else f"{known.step:,}",
            share=percent(weight),
            width=round(100 * weight / largest, 1),
            implied_lr=rates[i] if rates else "",
        )
        for i, (known, weight) in enumerate(zip(report.inputs, average.weights, strict=True))
    ]


def input_name(known: Input) -> str:
    """Return the name of an input, with its part where it is no plain checkpoint."""
    name = safe_text(PurePath(known.path).name)
    return f"{name} ({ROLES[known.role]})" if known.role in ROLES else name


def facts(report: Report, average: Average) -> list[tuple[str, str]]:
    """Return the figures of an average that are looked at first: name and value."""
    found = average.diagnostics
    drifts = drifting(average)
    pairs = [
        ("counts as", f"{found.effective_checkpoints:.1f} of {len(found.implied_lr)}"),
        ("mean age", f"{found.mean_age:,.4g} {found.mean_age_unit}s"),
        ("first / last share", f"{percent(found.first)} / {percent(found.last)}"),
        ("drift, median", percent(drifts[len(drifts) // 2].drift or 0) if drifts else _UNDEFINED),
        ("parameters", f"{report.summary.parameters:,}"),
        ("size", words.size(average.output)),
    ]
    if found.window_ratio_u is not None:
        pairs.insert(2, ("u = gap x (1-d)", f"{found.window_ratio_u:.3g}"))
    return pairs


def drifting(average: Average) -> list[Tensor]:
    """Return the tensors that have a drift, ties once, the least first."""
    known = [tensor for tensor in average.tensors if tensor.drift is not None and tensor.tied_to is None]
    return sorted(known, key=lambda tensor: tensor.drift or 0)


TENSOR_TITLES = ("tensor", "type", "shape", "drift", "cosine", "norm", "spread")


def tensor_row(tensor: Tensor) -> list[str]:
    """Return the cells of a tensor: name, type, shape, drift, cosine, norm, spread."""
    name = safe_text(tensor.name) + (f" = {safe_text(tensor.tied_to)}" if tensor.tied_to else "")
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    drift = "copied" if tensor.action == "copied" else _number(tensor.drift, percent_too=True)
    return [name, tensor.dtype, shape, drift, *map(_number, (tensor.cosine, tensor.norm, tensor.spread))]


def _number(value: float | None, *, percent_too: bool = False) -> str:
    if value is None:
        return _UNDEFINED
    return percent(value) if percent_too else f"{value:.6g}"


INPUT_TITLES = ("input", "step", "from", "format", "size", "fingerprint")


def input_rows(report: Report) -> list[list[str]]:
    """Return the cells of every input."""
    return [
        [
            safe_text(known.path),
            _UNDEFINED if known.step is None else f"{known.step:,}",
            safe_text(known.step_source or _UNDEFINED),
            known.format,
            human_bytes(known.bytes),
            f"sha256 {known.sha256}" if known.sha256 else known.fingerprint,
        ]
        for known in report.inputs
    ]


def output_rows(report: Report) -> list[list[str]]:
    """Return path, size and digest of every output; of a folder also what was carried over into it."""
    rows = []
    for output in (average.output for average in report.averages):
        carried = words.carried(output)
        size = words.size(output) + (f", with {carried}" if carried else "")
        rows.append([safe_text(words.place(output)), size, output.sha256])
    return rows


def timing_rows(report: Report) -> list[tuple[str, str]]:
    """Return what the run took."""
    summary = report.summary
    rows = [
        ("read", human_bytes(summary.bytes_read)),
        ("written", human_bytes(summary.bytes_written)),
        ("whole run", f"{summary.seconds:.2f} s"),
        ("fold", f"{summary.fold_seconds:.2f} s"),
        ("throughput of the fold", f"{human_bytes(summary.throughput_bytes_per_second)}/s"),
    ]
    if summary.peak_memory_bytes is not None:
        rows.append(("peak memory", human_bytes(summary.peak_memory_bytes)))
    return rows


COMPARISON_TITLES = ("average", "first", "last", "counts as", "mean age", "drift, median")


def comparison_rows(report: Report) -> list[list[str]]:
    """Return a row for each average of a run."""
    rows = []
    for average in report.averages:
        found, drifts = average.diagnostics, drifting(average)
        median = percent(drifts[len(drifts) // 2].drift or 0) if drifts else _UNDEFINED
        age = f"{found.mean_age:,.4g} {found.mean_age_unit}s"
        shares = [percent(found.first), percent(found.last)]
        rows.append([label(average), *shares, f"{found.effective_checkpoints:.1f}", age, median])
    return rows


def environment_line(report: Report) -> str:
    """Return what it ran on, in one line."""
    here = report.environment
    torch = f", torch {here.torch}" if here.torch else ""
    return (
        f"ema-avg {report.tool.version}, Python {here.python}, numpy {here.numpy}{torch}, "
        f"safetensors {here.safetensors}, {here.platform}, {here.device}"
    )


def command_line(argv: Sequence[str]) -> str:
    """Return the command as it can be typed again; empty for a call from Python."""
    return safe_text(shlex.join(["ema-avg", *argv[1:]]), limit=4000) if argv else ""


def counted(report: Report) -> str:
    """Say how many tensors there are."""
    copied = sum(tensor.action == "copied" for tensor in report.averages[0].tensors)
    return plural(report.summary.tensors - copied, "tensor") + " averaged" + (f", {copied:,} copied" if copied else "")
