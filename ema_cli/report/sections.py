"""The sections of the page of a report, in the order of a reader's questions, as values for its template.

What is it? Is it all right? Which checkpoints, with which weight? How far is it from the last, and where? Was the run
still moving? Where are the files, and how is it made again?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard

from markupsafe import Markup

from ema_cli.records.fold_results import RunGeometry
from ema_cli.records.series_evidence import Evidence
from ema_cli.report import movement, tables, words
from ema_cli.report.charts.curves import Curve
from ema_cli.report.charts.heat_map import heat_map
from ema_cli.report.charts.lr_scale import lr_chart
from ema_cli.report.charts.path import path_chart
from ema_cli.report.charts.weights import weights_chart
from ema_cli.report.drift_section import drift_in_short, drift_view
from ema_cli.report.model import Average, BatchNormUpdate, Report
from ema_cli.report.warning_rank import warnings_of
from ema_cli.text import number, percent, plural, quoted, safe_lines

MOST_AVERAGES = 12
"""Averages with charts and tables of their own; further ones are in the comparison only."""
LONGEST_OPEN_TABLE = 15
"""Rows of a table that is not folded."""
_MOST_SHARES = 400

View = dict[str, object]


def heading(report: Report) -> View:
    """Return the name of the average, the verdict, and the warnings, the most important first."""
    return {
        "title": _title(report),
        "overview": words.overview(report),
        "warnings": [
            {
                "code": warning.label,
                "message": safe_lines(warning.message),
                "hint": " ".join(safe_lines(warning.hint)),
            }
            for warning in warnings_of(report)
        ],
    }


def of_page(report: Report) -> View:
    """Return the values of all sections of the page."""
    shown = report.averages[:MOST_AVERAGES]
    update = report.batch_norm
    return {
        "comparison": _comparison(report) if len(report.averages) > 1 else None,
        "averages": [_average(report, average, len(shown)) for average in shown],
        "weights": _weights(report, shown) if update is None else None,
        "statistics": _statistics(update) if update is not None else None,
        "geometry": _geometry(report, report.geometry) if _has_path(report.geometry) else None,
        "no_path": movement.why_no_path(report),
        "evidence": _evidence(report, report.evidence) if report.evidence is not None else None,
        "no_evidence": movement.why_no_evidence(report),
    }


def first_chart(report: Report) -> Markup | None:
    """Return the shares of the checkpoints over their steps; ``None`` if there is only one."""
    if report.batch_norm is not None or len(_curves(report.averages[:1])[0].values) == 1:
        return None
    xs, unit = _clock(report)
    return markup(weights_chart(xs, _curves(report.averages[:MOST_AVERAGES]), x_label=unit))


def markup(chart: str) -> Markup:
    """Mark a chart as markup, not to be escaped: ``ema_cli.report.charts`` has escaped the text in it."""
    return Markup(chart)  # noqa: S704


def _title(report: Report) -> str:
    first = tables.label(report.averages[0])
    more = len(report.averages) - 1
    return f"{first} and {plural(more, 'other average')}" if more else first


def _comparison(report: Report) -> View:
    rows = [
        {"name": name, "method": words.in_short(average), "cells": cells}
        for average, (name, *cells) in zip(report.averages, tables.comparison_rows(report), strict=True)
    ]
    return {"titles": tables.COMPARISON_TITLES, "rows": rows}


def _average(report: Report, average: Average, averages: int) -> View:
    return {
        "name": tables.short_label(average),
        "verdict": words.verdict(report, average),
        "facts": tables.facts(report, average) if report.batch_norm is None else [],
        "method": tables.method_rows(average),
        "drift": drift_view(report, average, averages) if report.batch_norm is None else None,
        "drift_in_short": drift_in_short(average),
    }


def _weights(report: Report, shown: Sequence[Average]) -> View:
    """Return the shares as chart and table: with bars and the LR scale for one average, a column each for several."""
    xs, unit = _clock(report)
    count = len(shown[0].diagnostics.implied_lr)
    alone = count == 1
    scales = [Curve(name=tables.short_label(one), values=one.diagnostics.implied_lr) for one in shown]
    rows: Sequence[object] = list(_share_columns(report, shown))
    if len(report.averages) == 1:
        rows = tables.cut_middle(tables.share_rows(report, shown[0]), _MOST_SHARES, tables.more_shares)
    return {
        "chart": first_chart(report),
        "lr_chart": None if alone else markup(lr_chart(xs, scales, x_label=unit)),
        "empty": "There is one checkpoint: its share is 100 %, and there is nothing to draw." if alone else "",
        "continued": _continued(shown[0]),
        "unit": "step" if unit == "checkpoint" else unit,
        "titles": ["checkpoint", "step" if unit == "checkpoint" else unit, *map(tables.short_label, shown)],
        "rows": rows,
        "count": plural(len(report.inputs), "input"),
        "is_long": len(report.inputs) > LONGEST_OPEN_TABLE,
    }


def _share_columns(report: Report, shown: Sequence[Average]) -> Iterator[list[str]]:
    """Yield the shares of every input in each average; the middle of very many inputs is left to the JSON report."""
    columns = [tables.share_rows(report, average) for average in shown]
    rows = [[one[0].name, one[0].step, *(cell.share for cell in one)] for one in zip(*columns, strict=True)]
    yield from tables.cut_middle(rows, _MOST_SHARES, lambda more: [f"… {more:,} more", *[""] * (1 + len(shown))])


def _curves(averages: Sequence[Average]) -> list[Curve]:
    """Return the shares of the checkpoints, also of those inside a previous average."""
    return [
        Curve(name=tables.short_label(one), values=one.continued.shares if one.continued else one.weights)
        for one in averages
    ]


def _clock(report: Report) -> tuple[Sequence[float], str]:
    """Return the step of each checkpoint and its unit; their numbers, if they are not in the order of steps."""
    average = report.averages[0]
    steps: Sequence[int | None] | None = [known.step for known in report.inputs]
    if average.continued is not None:
        steps = average.continued.steps
    known = [step for step in steps or () if step is not None]
    count = len(average.continued.shares if average.continued else average.weights)
    if len(known) == count and known == sorted(known):
        unit = average.diagnostics.mean_age_unit
        return known, "step" if unit == "checkpoint" else unit
    return range(1, count + 1), "checkpoint"


def _continued(average: Average) -> str:
    if average.continued is None:
        return ""
    inside = plural(average.continued.checkpoints, "checkpoint")
    return (
        f"The first input is a previous average of {inside}, which this average continues. "
        "The charts show all checkpoints, the table the inputs."
    )


def _statistics(update: BatchNormUpdate) -> View:
    return {
        "sentence": f"Recomputed with the model {quoted(update.model)} on the data {quoted(update.data)}.",
        "titles": tables.STATISTICS_TITLES,
        "rows": tables.statistics_rows(update),
    }


def _has_path(geometry: RunGeometry | None) -> TypeGuard[RunGeometry]:
    return geometry is not None and any(map(any, geometry.pairwise_distance))


def _geometry(report: Report, geometry: RunGeometry) -> View:
    inputs = tables.input_names(report)
    names = [inputs[i] for i in geometry.inputs]
    averages = [
        (tables.short_label(average) if len(report.averages) > 1 else "average", (point[0], point[1]))
        for average, point in zip(report.averages, geometry.averages_2d, strict=True)
        if point is not None
    ][:MOST_AVERAGES]
    first, second = (percent(part) for part in geometry.explained)
    path = [(x, y) for x, y in geometry.path_2d]
    labels = (f"axis 1, {first} of the variance", f"axis 2, {second}")
    return {
        "movement": movement.movement(geometry, report.evidence),
        "path_chart": markup(path_chart(path, names, averages, labels)),
        "heat_map": markup(heat_map(geometry.pairwise_distance, names)),
        "largest_distance": number(max(map(max, geometry.pairwise_distance))),
        "explained": f"{first} and {second}",
        "measured_on": movement.measured_on(geometry),
    }


def _evidence(report: Report, evidence: Evidence) -> View:
    sample = f"A sample of {evidence.elements:,} elements of every checkpoint"
    return {
        "sentence": f"{sample}: {words.evidence(evidence)}. Distances are relative to the weights.",
        "titles": tables.EVIDENCE_TITLES,
        "rows": tables.evidence_rows(report, evidence),
    }
