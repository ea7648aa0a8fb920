"""A run of several averages has one report; each output has its own, of its one average. From one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ema_cli.report.model import Report


def of_one(report: Report, k: int) -> Report:
    """Return the report of the k-th average alone."""
    geometry = report.geometry
    if geometry is not None:
        geometry = replace(
            geometry, average_distance=(geometry.average_distance[k],), averages_2d=(geometry.averages_2d[k],)
        )
    return replace(report, averages=(report.averages[k],), geometry=geometry)


def together(reports: Sequence[Report]) -> Report:
    """Return one report of the averages of several, which are of one run."""
    first = reports[0]
    known = [report.geometry for report in reports if report.geometry is not None]
    geometry = first.geometry
    if geometry is not None and len(known) == len(reports):
        geometry = replace(
            geometry,
            average_distance=tuple(one for found in known for one in found.average_distance),
            averages_2d=tuple(one for found in known for one in found.averages_2d),
        )
    else:
        geometry = None
    return replace(first, averages=tuple(one for report in reports for one in report.averages), geometry=geometry)
