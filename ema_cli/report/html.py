"""A report as one HTML page that opens offline: no script, style, font or image comes from elsewhere.

Everything that came from a file is made safe for display and then escaped by the template, which escapes all that is
not marked as drawn by ``ema_cli.report.svg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from ema_cli.report import svg, tables, words
from ema_cli.report.model import Average, Geometry, Report, Tensor
from ema_cli.report.templates import fill
from ema_cli.text import percent, plural, safe_text

Row = TypeVar("Row")
_TEMPLATE = "page.html.j2"
_MOST_TENSORS = 1500
"""Rows of the large table; the rest is in the JSON report."""
_MOST_AVERAGES = 12
"""In full; the others stand in the comparison alone."""
_MOST_INPUTS = 400
_EXTREMES = 6
_TENSOR_COLUMNS = (0, 3, 4)
"""Name, drift and cosine: what the short tables show."""


def to_html(report: Report) -> str:
    """Return the page, below 300 kB for 50 checkpoints of 1,000 tensors."""
    return fill(
        _TEMPLATE,
        title=_title(report),
        report=report,
        averages=[_average_view(report, average) for average in report.averages[:_MOST_AVERAGES]],
        warnings=[
            {"code": w.code, "message": safe_text(w.message, limit=600), "hint": safe_text(w.hint, limit=600)}
            for w in report.warnings
        ],
        comparison_titles=tables.COMPARISON_TITLES,
        comparison=tables.comparison_rows(report),
        tensor_titles=[tables.TENSOR_TITLES[column] for column in _TENSOR_COLUMNS],
        all_tensor_titles=tables.TENSOR_TITLES,
        input_titles=tables.INPUT_TITLES,
        inputs=_cut(tables.input_rows(report), ["…", *[""] * 5]),
        outputs=tables.output_rows(report),
        timing=tables.timing_rows(report),
        geometry=_geometry_view(report, report.geometry) if report.geometry is not None else None,
        command=tables.command_line(report.command.argv),
        environment=tables.environment_line(report),
    )


def _title(report: Report) -> str:
    first = tables.label(report.averages[0])
    more = len(report.averages) - 1
    return f"{first} and {plural(more, 'other average')}" if more else first


@dataclass(frozen=True, slots=True, kw_only=True)
class _AverageView:
    """What the template shows of one average."""

    label: str
    verdict: str
    rebuilt: str
    continued: str
    facts: Sequence[tuple[str, str]]
    shares: Sequence[tables.ShareRow]
    rate_chart: Markup
    strip: Markup | None
    least: str
    most: str
    largest: Sequence[Sequence[str]]
    smallest: Sequence[Sequence[str]]
    count: str
    tensors: Sequence[Sequence[str]]
    more: str


def _average_view(report: Report, average: Average) -> _AverageView:
    drifts = tables.drifting(average)
    left = len(average.tensors) - _MOST_TENSORS
    return _AverageView(
        label=tables.label(average),
        verdict=words.verdict(report, average),
        rebuilt=words.reconstruction(average.method, average.diagnostics),
        continued=_continued(average),
        facts=tables.facts(report, average),
        shares=_cut(tables.share_rows(report, average), tables.GAP),
        rate_chart=_rate_chart(report, average),
        strip=_strip(average) if drifts else None,
        least=percent(drifts[0].drift or 0) if drifts else "",
        most=percent(drifts[-1].drift or 0) if drifts else "",
        largest=_short_rows(drifts[::-1]),
        smallest=_short_rows(drifts),
        count=f"All {plural(len(average.tensors), 'tensor')}: drift, cosine, norm, spread",
        tensors=[tables.tensor_row(tensor) for tensor in average.tensors[:_MOST_TENSORS]],
        more=f"{left:,} more are in the JSON report." if left > 0 else "",
    )


def _cut(rows: list[Row], gap: Row) -> list[Row]:
    """Leave out the middle of a long list; the JSON report has all of it."""
    half = _MOST_INPUTS // 2
    return rows if len(rows) <= _MOST_INPUTS else [*rows[:half], gap, *rows[-half:]]


def _short_rows(drifts: Sequence[Tensor]) -> list[list[str]]:
    rows = [tables.tensor_row(tensor) for tensor in drifts[:_EXTREMES]]
    return [[row[column] for column in _TENSOR_COLUMNS] for row in rows]


def _continued(average: Average) -> str:
    if average.continued is None:
        return ""
    inside = plural(average.continued.checkpoints, "checkpoint")
    return f"The first input is an earlier average of {inside}, which this one goes on from."


def _rate_chart(report: Report, average: Average) -> Markup:
    """Draw W_i over the steps, or over the numbers of the checkpoints where there are no steps."""
    rates = average.diagnostics.implied_lr
    steps = average.continued.steps if average.continued else _steps(report)
    xs: Sequence[float] = steps if steps is not None else range(1, len(rates) + 1)
    unit = average.diagnostics.mean_age_unit if steps is not None else "checkpoint"
    return _drawn(svg.steps_chart(xs, rates, x_label=unit, y_label="factor on the update"))


def _steps(report: Report) -> list[int] | None:
    steps = [known.step for known in report.inputs if known.step is not None]
    return steps if len(steps) == len(report.inputs) and steps == sorted(steps) else None


def _strip(average: Average) -> Markup:
    known = [tensor for tensor in average.tensors if tensor.drift is not None and tensor.tied_to is None]
    names = [safe_text(tensor.name) for tensor in known]
    return _drawn(svg.strip([tensor.drift or 0 for tensor in known], names))


def _geometry_view(report: Report, geometry: Geometry) -> dict[str, object]:
    names = [tables.input_name(report.inputs[i]) for i in geometry.inputs]
    path = [(x, y) for x, y in geometry.path_2d]
    averages = [
        (tables.label(average) if len(report.averages) > 1 else "average", (place[0], place[1]))
        for average, place in zip(report.averages, geometry.averages_2d, strict=True)
        if place is not None
    ]
    first, second = (percent(part) for part in geometry.explained)
    return {
        "path_chart": _drawn(
            svg.path_chart(path, names, averages, (f"axis 1, {first} of the variance", f"axis 2, {second}"))
        ),
        "heat_map": _drawn(svg.heat_map(geometry.pairwise_distance, names)),
        "furthest": f"{max(map(max, geometry.pairwise_distance)):.4g}",
        "explained": f"{first} and {second} of it",
        "movement": words.movement(geometry),
        "measured_on": words.measured_on(geometry),
    }


def _drawn(drawing: str) -> Markup:
    """Mark a drawing as markup: ``svg`` has escaped the text in it."""
    return Markup(drawing)  # noqa: S704
