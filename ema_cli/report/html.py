"""HTML pages that open offline, without scripts, styles, fonts or images from elsewhere: a report, and a batch index.

All text from files is made safe for display and then escaped by the templates, which escape everything except the
charts of ``ema_cli.report.svg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ema_cli.records.fold_results import RunGeometry
from ema_cli.records.series_evidence import Evidence
from ema_cli.report import svg, tables, words
from ema_cli.report.batch_index import BatchIndex, JobEntry
from ema_cli.report.model import Average, Report, Tensor
from ema_cli.report.redaction import REMOVED, redacted_index, redacted_report
from ema_cli.text import percent, plural, safe_text

_MOST_TENSORS = 1500
"""Rows of the table of all tensors; further ones are in the JSON report only."""
_MOST_AVERAGES = 12
"""Averages in full; further ones are in the comparison table only."""
_MOST_INPUTS = 400
_EXTREMES = 6
_TENSOR_COLUMNS = (0, 3, 4)
"""Name, drift and cosine: the columns of the short tables."""
_LONGEST_MESSAGE = 600
_LONGEST_JOB_ERROR = 400


def to_html(report: Report) -> str:
    """Return the page of a report, below 300 kB for 50 checkpoints of 1,000 tensors."""
    report = redacted_report(report)
    return _fill(
        "page.html.j2",
        title=_title(report),
        report=report,
        averages=[_average_view(report, average) for average in report.averages[:_MOST_AVERAGES]],
        warnings=[
            {
                "code": warning.label,
                "message": safe_text(warning.message, limit=_LONGEST_MESSAGE, whole=False),
                "hint": safe_text(warning.hint, limit=_LONGEST_MESSAGE, whole=False),
            }
            for warning in report.warnings
        ],
        comparison_titles=tables.COMPARISON_TITLES,
        comparison=tables.comparison_rows(report),
        tensor_titles=[tables.TENSOR_TITLES[column] for column in _TENSOR_COLUMNS],
        all_tensor_titles=tables.TENSOR_TITLES,
        input_titles=tables.INPUT_TITLES,
        inputs=tables.cut_middle(
            tables.input_rows(report), _MOST_INPUTS, lambda count: [f"… {count:,} more", *[""] * 5]
        ),
        outputs=tables.output_rows(report),
        timing=tables.timing_rows(report),
        geometry=_geometry_view(report, report.geometry) if report.geometry is not None else None,
        evidence=_evidence_view(report, report.evidence) if report.evidence is not None else None,
        command=tables.command_line(report.command.argv),
        config=tables.config_line(report.command.config),
        removed=REMOVED if report.command.secrets_removed else "",
        environment=tables.environment_line(report),
    )


def fragment(report: Report) -> str:
    """Return the verdicts of a report as a piece of HTML that can be shown anywhere."""
    report = redacted_report(report)
    verdicts = (words.verdict(report, average) for average in report.averages[:_MOST_AVERAGES])
    return "".join(Markup("<p>{}</p>").format(verdict) for verdict in verdicts)


def index_to_html(index: BatchIndex) -> str:
    """Return the page of a batch index; it links to each report, relative to its folder."""
    index = redacted_index(index)
    counts = [("written", index.summary.written), ("up to date", index.summary.up_to_date)]
    counts += [("planned", index.summary.planned)] if index.summary.planned else []
    return _fill(
        "index.html.j2",
        title=f"{plural(index.summary.jobs, 'run')}, {index.summary.failed:,} failed",
        index=index,
        facts=[*counts, ("failed", index.summary.failed), ("seconds", f"{index.summary.seconds:.2f}")],
        jobs=[_job_view(entry) for entry in index.jobs],
        command=tables.command_line(index.command.argv),
        config=tables.config_line(index.command.config),
        removed=REMOVED if index.command.secrets_removed else "",
    )


def _fill(template: str, **values: object) -> str:
    """Return a template of this folder with values filled in, escaped unless they are ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def _title(report: Report) -> str:
    first = tables.label(report.averages[0])
    more = len(report.averages) - 1
    return f"{first} and {plural(more, 'other average')}" if more else first


def _average_view(report: Report, average: Average) -> dict[str, object]:
    """Return the values of one average in the template."""
    moved = tables.by_drift(average)
    more = len(average.tensors) - _MOST_TENSORS
    return {
        "label": tables.label(average),
        "verdict": words.verdict(report, average),
        "reconstruction": words.reconstruction(average.method, average.diagnostics),
        "continued": _continued(average),
        "facts": tables.facts(report, average),
        "shares": tables.cut_middle(tables.share_rows(report, average), _MOST_INPUTS, tables.more_shares),
        "lr_chart": _lr_chart(report, average),
        "strip": _drift_strip(average) if moved else None,
        "smallest_drift": percent(moved[0].drift or 0) if moved else "",
        "largest_drift": percent(moved[-1].drift or 0) if moved else "",
        "moved_most": _short_rows(moved[::-1]),
        "moved_least": _short_rows(moved),
        "tensors_summary": f"All {plural(len(average.tensors), 'tensor')}: drift, cosine, norm, spread",
        "tensors": [tables.tensor_row(tensor) for tensor in average.tensors[:_MOST_TENSORS]],
        "more_tensors": f"{more:,} more are in the JSON report." if more > 0 else "",
    }


def _short_rows(tensors: Sequence[Tensor]) -> list[list[str]]:
    rows = [tables.tensor_row(tensor) for tensor in tensors[:_EXTREMES]]
    return [[row[column] for column in _TENSOR_COLUMNS] for row in rows]


def _continued(average: Average) -> str:
    if average.continued is None:
        return ""
    inside = plural(average.continued.checkpoints, "checkpoint")
    return f"The first input is a previous average of {inside}, which this average continues."


def _lr_chart(report: Report, average: Average) -> Markup:
    """Draw the LR scale W_i over the steps, or over the numbers of the checkpoints if they have no steps."""
    scale = average.diagnostics.implied_lr
    steps = average.continued.steps if average.continued else _steps(report)
    xs: Sequence[float] = steps if steps is not None else range(1, len(scale) + 1)
    unit = average.diagnostics.mean_age_unit if steps is not None else "checkpoint"
    return _markup(svg.steps_chart(xs, scale, x_label=unit, y_label="LR scale"))


def _steps(report: Report) -> list[int] | None:
    steps = [known.step for known in report.inputs if known.step is not None]
    return steps if len(steps) == len(report.inputs) and steps == sorted(steps) else None


def _drift_strip(average: Average) -> Markup:
    tensors = tables.tensors_with_drift(average)
    return _markup(svg.strip([tensor.drift or 0 for tensor in tensors], [safe_text(tensor.name) for tensor in tensors]))


def _geometry_view(report: Report, geometry: RunGeometry) -> dict[str, object]:
    inputs = tables.input_names(report)
    names = [inputs[i] for i in geometry.inputs]
    path = [(x, y) for x, y in geometry.path_2d]
    averages = [
        (tables.label(average) if len(report.averages) > 1 else "average", (point[0], point[1]))
        for average, point in zip(report.averages, geometry.averages_2d, strict=True)
        if point is not None
    ]
    first, second = (percent(part) for part in geometry.explained)
    return {
        "path_chart": _markup(
            svg.path_chart(path, names, averages, (f"axis 1, {first} of the variance", f"axis 2, {second}"))
        ),
        "heat_map": _markup(svg.heat_map(geometry.pairwise_distance, names)),
        "largest_distance": f"{max(map(max, geometry.pairwise_distance)):.4g}",
        "explained": f"{first} and {second}",
        "movement": words.movement(geometry, report.evidence),
        "measured_on": words.measured_on(geometry),
    }


def _evidence_view(report: Report, evidence: Evidence) -> dict[str, object]:
    return {
        "sentence": words.evidence(evidence),
        "elements": f"{evidence.elements:,}",
        "titles": tables.EVIDENCE_TITLES,
        "rows": tables.evidence_rows(report, evidence),
    }


def _markup(chart: str) -> Markup:
    """Mark a chart as markup, not to be escaped: ``svg`` has escaped the text in it."""
    return Markup(chart)  # noqa: S704


def _job_view(entry: JobEntry) -> dict[str, object]:
    error = entry.error
    message = f"{error.message} (exit {error.exit_code})" if error else ""
    return {
        "run": safe_text(entry.run),
        "status": entry.status,
        "result": entry.status.replace("_", " "),
        "checkpoints": f"{entry.checkpoints:,}" if entry.checkpoints else "",
        "seconds": f"{entry.seconds:.2f}",
        "warnings": ", ".join(entry.warnings),
        "error": safe_text(message, limit=_LONGEST_JOB_ERROR, whole=False),
        "links": [{"url": _relative_link(path), "name": path.rpartition(".")[2]} for path in entry.reports],
    }


def _relative_link(path: str) -> str:
    """Return a path as a relative link: no part of it is taken for a scheme, a query or a fragment."""
    return "./" + quote(path.encode(errors="surrogateescape"), safe="/")
