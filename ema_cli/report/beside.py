"""The report beside each output: its path, its content (the one average of that output), and how it is read.

A run with several averages has one report, and each of its outputs has a report of its own average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.formats.json_text import parse_object
from ema_cli.naming import report_name
from ema_cli.report.input_paths import path_from_other
from ema_cli.report.model import Report
from ema_cli.report.serialize import from_plain
from ema_cli.storage.locations import Location, open_source
from ema_cli.storage.url import Url
from ema_cli.text import quoted

AnyLocation = TypeVar("AnyLocation", Path, Url, Location)
LARGEST_BYTES = 1 << 27
"""Larger files are not read as reports: their values would take more memory than JSON may."""


def report_path(output: AnyLocation) -> AnyLocation:
    """Return the path of the report beside an output."""
    return output.with_name(report_name(output.name))


def read_report(output: Location) -> Report | None:
    """Return the report beside an output; ``None`` if it is missing or invalid."""
    try:
        return load_report(report_path(output))
    except EmaAvgError:
        return None


def load_report(path: Location, *, several: bool = False) -> Report:
    """Return the report of one output, or with ``several`` that of a run, checked to be well formed.

    Raises:
        NothingMatched: the file is missing.
        InputRefused: the file cannot be read or is not such a report.

    """
    report = parse_report(path)
    from ema_cli.report.validation import find_fault  # noqa: PLC0415 - a first run finds no report

    fault = find_fault(report, several=several)
    if fault is not None:
        raise InputRefused(f"{quoted(str(path))} is not a valid report of ema-avg: {fault}")
    return report


def parse_report(path: Location) -> Report:
    """Return the report in a JSON file, of any number of averages, with unchecked values; raise as ``load_report``."""
    with open_source(path) as source:
        if source.size() > LARGEST_BYTES:
            raise InputRefused(f"{quoted(str(path))} has {source.size():,} bytes, too many for a report")
        raw = source.read(0, source.size())
    try:
        return from_plain(parse_object(raw))
    except ValueError as error:
        raise InputRefused(f"{quoted(str(path))} is not a report of ema-avg") from error


def report_of_average(report: Report, k: int) -> Report:
    """Return the report of the k-th average alone, with the paths of its inputs relative to its output."""
    first, average = report.averages[0].output.path, report.averages[k]
    geometry = report.geometry
    if geometry is not None:
        geometry = replace(
            geometry, average_distance=(geometry.average_distance[k],), averages_2d=(geometry.averages_2d[k],)
        )
    inputs = tuple(
        replace(known, path_from_output=path_from_other(known, first, average.output.path)) for known in report.inputs
    )
    return replace(report, inputs=inputs, averages=(average,), geometry=geometry)


def join_reports(reports: Sequence[Report]) -> Report:
    """Return the report of a run from those of its averages; without geometry if one of them has none."""
    geometries = [report.geometry for report in reports if report.geometry is not None]
    geometry = None
    if len(geometries) == len(reports):
        geometry = replace(
            geometries[0],
            average_distance=tuple(row for each in geometries for row in each.average_distance),
            averages_2d=tuple(point for each in geometries for point in each.averages_2d),
        )
    return replace(
        reports[0], averages=tuple(average for report in reports for average in report.averages), geometry=geometry
    )
