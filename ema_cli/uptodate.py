"""Is an output already there? The file must begin with the planned header, its report name the same inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.naming import report_name
from ema_cli.options import Options
from ema_cli.records import Plan, PlannedOutput
from ema_cli.report.model import Report
from ema_cli.report.serialize import from_json
from ema_cli.text import quoted, shortlist


def find_up_to_date(plan: Plan, options: Options) -> Report | None:
    """Return the report of an earlier run that wrote exactly these outputs from these inputs, if there was one.

    Raises:
        OutputError: an output exists, is not up to date, and ``--force`` was not given.

    """
    reports = [_matching_report(output, plan, options) for output in plan.outputs]
    found = [report for report in reports if report is not None]
    if len(found) == len(reports) and not options.force:
        averages = tuple(average for report in found for average in report.averages)
        return dataclasses.replace(found[0], averages=averages)
    in_the_way = [
        quoted(str(output.path))
        for output, report in zip(plan.outputs, reports, strict=True)
        if report is None and output.path.exists()
    ]
    if in_the_way and not options.force:
        raise OutputError(
            f"{shortlist(in_the_way)} exists and is not this average of these checkpoints",
            hint="choose another name with -o, or overwrite it with --force",
        )
    return None


def report_path(output: Path) -> Path:
    """Return the path of the report beside an output."""
    return output.with_name(report_name(output.name))


def _matching_report(output: PlannedOutput, plan: Plan, options: Options) -> Report | None:
    try:
        with output.path.open("rb") as file:
            same_header = file.read(len(output.header)) == output.header
        same_size = output.path.stat().st_size == len(output.header) + plan.data_bytes
        report = from_json(report_path(output.path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same_inputs = [i.fingerprint for i in report.inputs] == [c.fingerprint for c in plan.checkpoints]
    same_weights = [average.weights for average in report.averages] == [output.weighting.weights]
    digests = not options.sha256 or all(i.sha256 for i in report.inputs)
    return report if same_header and same_size and same_inputs and same_weights and digests else None
