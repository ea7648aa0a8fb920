"""Check that a report is one that this program can have written: a report is an untrusted file.

Input -> output: a ``Report`` as ``from_json`` builds it, with numbers of any size -> the first fault, in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from ema_cli.dtypes import BY_NAME, Kind
from ema_cli.options.output_options import OutputFormat
from ema_cli.records.files import FileRole
from ema_cli.records.fold_results import RunGeometry
from ema_cli.records.plan import Action
from ema_cli.records.record_types import describe, field_types
from ema_cli.records.reported_output import File, is_inner_name
from ema_cli.records.series import Role
from ema_cli.records.series_evidence import Evidence
from ema_cli.report.model import SCHEMA_VERSION, Average, Report, Tensor
from ema_cli.text import plural, quoted, safe_text

_LARGEST_SIZE = 1 << 62
_DEEPEST = 8
"""Levels of lists and mappings in the value of an option."""
_SHOWN = 60
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The ends of the names of tensors that can be recomputed on data."""


def find_fault(report: Report, *, several: bool = False) -> str | None:
    """Return the first fault of the report of one output; ``None`` if the report is well formed and consistent.

    With ``several``, the report may be that of a run with several outputs.
    """
    if len(report.averages) != 1 and not (several and report.averages):
        return f"it has {len(report.averages):,} averages instead of one"
    return next(_bad_values(Report, report, ""), None) or next(_contradictions(report), None)


def _bad_values(hint: Any, value: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - walks the types of the records
    """Yield every number that is not finite or too large."""
    match describe(hint):
        case "record", record:
            for name, field_hint in field_types(record).items():
                yield from _bad_values(field_hint, getattr(value, name), f"{path}.{name}" if path else name)
        case "optional", content:
            if value is not None:
                yield from _bad_values(content, value, path)
        case "tuple", item:
            for number, element in enumerate(value):
                yield from _bad_values(item, element, f"{path}[{number}]")
        case _:
            yield from _bad_plain_values(value, path, depth=0)


def _bad_plain_values(value: object, path: str, depth: int) -> Iterator[str]:
    """Yield every such number in a value of any type, and lists and mappings that are nested too deeply."""
    if depth > _DEEPEST:
        yield f"{path} is nested too deeply"
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _bad_plain_values(inner, path, depth + 1)
    elif (isinstance(value, int) and abs(value) >= _LARGEST_SIZE) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        yield f"{path} is {safe_text(repr(value), limit=_SHOWN)}"


def _contradictions(report: Report) -> Iterator[str]:
    """Yield values of the right type that are impossible."""
    keys = report.command.options.get("key")
    if not isinstance(report.command.options.get("strip_prefix"), str | None):
        yield "the option strip_prefix is not text"
    if not isinstance(keys, str | None) and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        yield "the option key is not text, nor a list of such"
    for number, known in enumerate(report.inputs):
        if known.bytes < 0:
            yield f"inputs[{number}].bytes is {known.bytes:,}"
        if known.role not in set(Role):
            yield f"inputs[{number}].role is {quoted(known.role)}"
    if report.schema_version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        yield f"its schema version is {quoted(report.schema_version)}"
    for average in report.averages:
        yield from _of_average(average, len(report.inputs), recomputed=report.batch_norm is not None)
    yield from _of_evidence(report.evidence, len(report.inputs))
    if report.geometry is not None:
        yield from _of_geometry(report.geometry, len(report.inputs), len(report.averages))


def _of_geometry(geometry: RunGeometry, inputs: int, averages: int) -> Iterator[str]:
    """Yield lists of an impossible length."""
    count = len(geometry.inputs)
    lengths = [
        (len(geometry.pairwise_distance), count),
        *((len(row), count) for row in geometry.pairwise_distance),
        (len(geometry.path_2d), count),
        *((len(point), 2) for point in (*geometry.path_2d, geometry.explained)),
        (len(geometry.averages_2d), averages),
        *((len(point), 2) for point in geometry.averages_2d if point is not None),
        (len(geometry.average_distance), averages),
    ]
    if count < 2 or any(length != expected for length, expected in lengths):  # noqa: PLR2004 - two have a distance
        yield "the geometry does not match its inputs and averages"
    if not all(0 <= number < inputs for number in geometry.inputs):
        yield "the geometry names inputs that do not exist"


def _of_evidence(evidence: Evidence | None, inputs: int) -> Iterator[str]:
    """Yield lists of an impossible length, and inputs that do not exist."""
    if evidence is None:
        return
    count = len(evidence.inputs)
    square = (len(evidence.nearest_cosines), len(evidence.distances), *map(len, evidence.distances))
    named = (
        *evidence.inputs,
        *evidence.shortest_order,
        *evidence.outliers,
        *(i for group in evidence.copies for i in group),
    )
    if any(length != count for length in square) or not all(0 <= number < inputs for number in named):
        yield "the evidence does not match its inputs"


def _of_files(files: Sequence[File]) -> Iterator[str]:
    """Yield files with an unknown role, and names that point outside the folder or are not printable."""
    for file in files:
        if not is_inner_name(file.name) or file.role not in set(FileRole):
            yield f"output.files has {quoted(file.name)}, {quoted(file.role)}"


def _has_pieces(tensor: Tensor, inputs: int) -> bool:
    """Whether a tensor has pieces exactly if it needs them, and they are possible."""
    pieces, needed = tensor.pieces, tensor.action in (Action.CONCATENATED, Action.SCALED)
    if pieces is None:
        return not needed
    return (
        needed
        and BY_NAME[tensor.dtype].kind is Kind.FLOAT
        and 0 <= pieces.axis <= max(len(tensor.shape) - 1, 0)
        and len(set(pieces.inputs)) == len(pieces.inputs) == len(pieces.factors) > 0
        and all(0 <= number < inputs for number in pieces.inputs)
    )


def _of_average(average: Average, inputs: int, *, recomputed: bool) -> Iterator[str]:
    if len(average.weights) != inputs:
        yield f"it has {len(average.weights):,} weights for {inputs:,} inputs"
    rates, continued = len(average.diagnostics.implied_lr), average.continued
    shares = inputs if continued is None else len(continued.shares)
    if rates != shares:
        yield f"it has {rates:,} learning-rate factors for {inputs:,} inputs"
    steps = None if continued is None else continued.steps
    if steps is not None and len(steps) != shares:
        yield f"it has {len(steps):,} steps for {plural(shares, 'share')}"
    if not any(average.weights):
        yield "all weights are zero"
    if average.output.bytes < 0:
        yield f"output.bytes is {average.output.bytes:,}"
    if average.method.power is not None and average.method.inv_gamma is None:
        yield "its method has a power without inv_gamma"
    if not recomputed and any(tensor.action == Action.RECOMPUTED for tensor in average.tensors):
        yield "it has recomputed tensors, but not how they were recomputed"
    if average.output.format not in get_args(OutputFormat):
        yield f"output.format is {quoted(average.output.format)}"
    yield from _of_files(average.output.files)
    for tensor in average.tensors:
        yield from _of_tensor(tensor, inputs)


def _of_tensor(tensor: Tensor, inputs: int) -> Iterator[str]:
    name = f"tensor {quoted(tensor.name)}"
    if tensor.dtype not in BY_NAME:
        yield f"{name} has the unknown type {quoted(tensor.dtype)}"
    elif tensor.action not in set(Action) or (tensor.action == Action.AVERAGED and not BY_NAME[tensor.dtype].averaged):
        yield f"{name} of type {BY_NAME[tensor.dtype].torch_name} cannot be {quoted(tensor.action)}"
    elif min(tensor.shape, default=0) < 0:
        yield f"{name} has the shape {quoted(str(tensor.shape))}"
    elif tensor.action == Action.RECOMPUTED and not tensor.name.endswith(_STATISTICS):
        yield f"{name} is no BatchNorm statistic, and cannot be {quoted(tensor.action)}"
    elif not _has_pieces(tensor, inputs):
        yield f"{name} has pieces that do not fit to its inputs"
