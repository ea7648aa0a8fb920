"""A report in Markdown, for step summaries, merge requests and notes. Unicode bars instead of charts.

All text from files is made safe for display and then escaped, so that GitHub and GitLab show it as plain text: no link,
no mention, no table cell, no HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from ema_cli.report import movement, run_tables, tables, words
from ema_cli.report.model import Average, Report
from ema_cli.report.redaction import REMOVED, redacted_report
from ema_cli.report.warning_rank import warnings_of
from ema_cli.text import percent, regex, safe_lines, safe_text

MARK = "<!-- ema-avg report -->"
"""The first line: a later run recognizes the file by it, and may replace it."""
_SPECIAL = regex(r"([\\`*_{}\[\]()#+!|~$:-]|(?<=www)\.)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@&#8203;"}
"""The invisible space keeps an @ from being a mention."""
_BAR_WIDTH = 20
_MOST_INPUTS = 60
_MOST_TENSORS = 25
_MOST_AVERAGES = 8
"""Averages in full; further ones are in the comparison table only."""
_MOST_COMPARED = 200
_LONGEST_TEXT = 300


def to_markdown(report: Report) -> str:
    """Return the report, well below the limit of step summaries (1 MiB)."""
    return "\n".join([MARK, *_lines(redacted_report(report))]) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows unchanged."""
    safe = safe_text(text, limit=_LONGEST_TEXT)
    return "".join(_ENTITIES.get(character, character) for character in _SPECIAL.sub(r"\\\1", safe))


def _in_html(text: str) -> str:
    """Return text for the inside of an HTML element, where Markdown is not parsed."""
    return html.escape(safe_text(text, limit=_LONGEST_TEXT)).replace("@", "@&#8203;").replace(":", "&#58;")


def _in_code(text: str) -> str:
    """Return text for the inside of a code span, which a backtick would end."""
    return safe_text(text, limit=_LONGEST_TEXT).replace("`", "'")


def _lines(report: Report) -> Iterator[str]:
    several = len(report.averages) > 1
    yield f"## ema-avg: {escaped(tables.label(report.averages[0]))}" + (" and others" if several else "")
    yield from ("", escaped(words.overview(report)))
    yield from _warnings(report)
    if several:
        yield from ("", *_table(tables.COMPARISON_TITLES, tables.comparison_rows(report)[:_MOST_COMPARED]))
    if report.batch_norm is not None:
        yield from ("", *_table(tables.STATISTICS_TITLES, tables.statistics_rows(report.batch_norm)[:_MOST_COMPARED]))
    else:
        for average in report.averages[:_MOST_AVERAGES]:
            yield from _average_lines(report, average)
    if report.geometry is not None:
        moved = movement.movement(report.geometry, report.evidence)
        yield from ("", f"{moved} Distances {movement.measured_on(report.geometry)}.".strip())
    yield from ("", *_table(("file", "size", "sha256"), run_tables.output_rows(report)[:_MOST_COMPARED]))
    command = run_tables.command_line(report.command.argv)
    if command:
        yield from ("", "```sh", command.replace("```", "'''"), "```")
    config = run_tables.config_line(report.command.config)
    if config:
        yield from ("", escaped(config))
    if report.command.secrets_removed:
        yield from ("", escaped(REMOVED))
    yield from _details(report)
    yield from ("", f"<sub>{escaped(run_tables.environment_line(report))}</sub>")


def _warnings(report: Report) -> Iterator[str]:
    """Yield the warnings, the most important first; or that there are none."""
    if not report.warnings:
        yield from ("", "No warnings.")
    for warning in warnings_of(report):
        message = "<br>".join(escaped(line.strip()) for line in safe_lines(warning.message))
        hint = f" Try: {escaped(warning.hint)}" if warning.hint else ""
        yield from ("", f"> **Warning** {message} (`{_in_code(warning.label)}`).{hint}")


def _average_lines(report: Report, average: Average) -> Iterator[str]:
    rows = tables.cut_middle(tables.share_rows(report, average), _MOST_INPUTS, tables.more_shares)
    bars = [[row.name, row.step, row.share, "█" * round(_BAR_WIDTH * row.width / 100), row.implied_lr] for row in rows]
    yield from ("", f"<details><summary>Shares of {_in_html(tables.label(average))}</summary>", "")
    yield from _table(("checkpoint", "step", "share", "", "LR scale"), bars)
    yield from ("", "</details>")
    tensors = tables.by_drift(average)[::-1]
    if tensors:
        largest = f"{percent(tensors[0].drift or 0)} in {tensors[0].name}"
        summary = f"Drift of {_in_html(tables.label(average))} from the last checkpoint: largest {_in_html(largest)}"
        yield from ("", f"<details><summary>{summary}</summary>", "")
        yield from _table(tables.TENSOR_TITLES, [tables.tensor_row(tensor) for tensor in tensors[:_MOST_TENSORS]])
        yield from ("", f"{tables.tensor_counts(report)}.", "", "</details>")


def _details(report: Report) -> Iterator[str]:
    """Yield formulas, evidence and times, folded."""
    yield from ("", "<details><summary>Details</summary>")
    for average in report.averages[:_MOST_AVERAGES]:
        yield from ("", f"{escaped(tables.label(average))}:", "")
        yield from (f"* {name}: {escaped(value)}" for name, value in tables.method_rows(average))
    if report.evidence is not None:
        yield from ("", f"Evidence before the fold: {escaped(words.evidence(report.evidence))}.")
    yield from ("", "; ".join(f"{name} {value}" for name, value in run_tables.timing_rows(report)) + ".")
    yield from ("", "</details>")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"
