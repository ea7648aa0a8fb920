"""Is a report what this program writes? A report is a file like any other, and may hold anything.

Input -> output: a ``Report`` as ``from_json`` builds it, whose numbers may be of any size -> the first fault, in words.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from ema_cli.dtypes import BY_NAME
from ema_cli.records.files import FileRole
from ema_cli.records.plan import Action
from ema_cli.records.series import Role
from ema_cli.report.model import SCHEMA_VERSION, Average, File, Geometry, Report
from ema_cli.text import quoted, safe_text

_LARGEST_SIZE = 1 << 62
_SHOWN = 60
_TEXT_OPTIONS = ("key", "strip_prefix")


def find_fault(report: Report) -> str | None:
    """Return what is wrong with the report of one output, ``None`` if all of it can be relied on to be well formed."""
    return next(_misfits(Report, report, "the report"), None) or next(_contradictions(report), None)


def _misfits(kind: Any, value: Any, place: str) -> Iterator[str]:  # noqa: ANN401 - walks the types of the records
    """Yield every number that is not finite or beyond sense, and every options that are none."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        for name, hint in _fields(kind).items():
            yield from _misfits(hint, getattr(value, name), name if isinstance(value, Report) else f"{place}.{name}")
    elif isinstance(kind, types.UnionType):
        if value is not None:
            yield from _misfits(typing.get_args(kind)[0], value, place)
    elif typing.get_origin(kind) is tuple:
        for number, item in enumerate(value):
            yield from _misfits(typing.get_args(kind)[0], item, f"{place}[{number}]")
    elif (fits := _CHECKS.get(typing.get_origin(kind) or kind)) is not None and not fits(value):
        yield f"{place} is {safe_text(repr(value), limit=_SHOWN)}"


@cache
def _fields(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_SIZE


def _is_number(value: object) -> bool:
    return _is_size(value) or (isinstance(value, float) and math.isfinite(value))


_CHECKS: dict[Any, Callable[[Any], bool]] = {
    int: _is_size,
    float: _is_number,
    dict: lambda value: isinstance(value, dict),
}


def _contradictions(report: Report) -> Iterator[str]:
    """Yield what is of the right type and cannot be."""
    if len(report.averages) != 1:
        yield f"it tells of {len(report.averages):,} averages"
    for name in _TEXT_OPTIONS:
        if not isinstance(report.command.options.get(name), str | None):
            yield f"the option {name} is no text"
    for number, known in enumerate(report.inputs):
        if known.bytes < 0:
            yield f"inputs[{number}].bytes is {known.bytes:,}"
        if known.role not in set(Role):
            yield f"inputs[{number}].role is {quoted(known.role)}"
    if report.schema_version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        yield f"its schema is {quoted(report.schema_version)}"
    for average in report.averages:
        yield from _of_average(average, len(report.inputs))
    if report.geometry is not None:
        yield from _of_geometry(report.geometry, len(report.inputs), len(report.averages))


def _of_geometry(found: Geometry, inputs: int, averages: int) -> Iterator[str]:
    """Yield lists of a length that they cannot have."""
    count = len(found.inputs)
    lengths = [
        (len(found.pairwise_distance), count),
        *((len(row), count) for row in found.pairwise_distance),
        (len(found.path_2d), count),
        *((len(place), 2) for place in (*found.path_2d, found.explained)),
        (len(found.averages_2d), averages),
        *((len(place), 2) for place in found.averages_2d if place is not None),
        (len(found.average_distance), averages),
    ]
    if count < 2 or any(length != right for length, right in lengths):  # noqa: PLR2004 - one has no distances
        yield "the geometry is not that of its inputs"
    if not all(0 <= number < inputs for number in found.inputs):
        yield "the geometry is about inputs that there are not"


def _of_files(files: Sequence[File]) -> Iterator[str]:
    """Yield files whose names would lead out of the folder, and those that are nothing that a folder holds."""
    for file in files:
        if PurePath(file.name).name != file.name or not file.name.isprintable() or file.role not in set(FileRole):
            yield f"output.files has {quoted(file.name)}, {quoted(file.role)}"


def _of_average(average: Average, inputs: int) -> Iterator[str]:
    if len(average.weights) != inputs:
        yield f"it has {len(average.weights):,} weights for {inputs:,} inputs"
    rates = len(average.diagnostics.implied_lr)
    if rates != (inputs if average.continued is None else len(average.continued.shares)):
        yield f"it has {rates:,} factors of the learning rate for {inputs:,} inputs"
    if not any(average.weights):
        yield "no weight is other than zero"
    if average.output.bytes < 0:
        yield f"output.bytes is {average.output.bytes:,}"
    yield from _of_files(average.output.files)
    for tensor in average.tensors:
        place = f"tensor {quoted(tensor.name)}"
        if tensor.dtype not in BY_NAME:
            yield f"{place} is of the unknown type {quoted(tensor.dtype)}"
        elif tensor.action not in set(Action) or (
            tensor.action == Action.AVERAGED and not BY_NAME[tensor.dtype].averaged
        ):
            yield f"{place}, {BY_NAME[tensor.dtype].torch_name}, is said to be {quoted(tensor.action)}"
        elif min(tensor.shape, default=0) < 0:
            yield f"{place} has the shape {quoted(str(tensor.shape))}"
