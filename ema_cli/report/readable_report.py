"""A report as the Python functions return it: one line in the interpreter, a page in a notebook, a file on request."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Self

from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.record import record
from ema_cli.report import words
from ema_cli.report.model import Report
from ema_cli.report.report_files import save_report
from ema_cli.report.serialize import to_json
from ema_cli.storage.locations import locate
from ema_cli.text import plural, quoted, safe_text, shortlist

_MOST_OUTPUTS = 2
"""Paths of outputs in the one line."""


@record
class ReadableReport(Report):
    """The report of a run, with the fields of the JSON report; a notebook shows its verdict and the weights."""

    @classmethod
    def of(cls, report: Report) -> Self:
        """Return a report in this form."""
        return cls(**{field.name: getattr(report, field.name) for field in fields(report)})

    def to_html(self) -> str:
        """Return the page: one file that opens offline."""
        from ema_cli.report.html import to_html  # noqa: PLC0415 - jinja2 takes a moment

        return to_html(self)

    def to_markdown(self) -> str:
        """Return the report in Markdown, for issues, merge requests and notes."""
        from ema_cli.report.markdown import to_markdown  # noqa: PLC0415

        return to_markdown(self)

    def to_json(self) -> str:
        """Return the JSON document, which ``ema_cli.load_report`` reads from a file."""
        return to_json(self)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the report to a file, which appears complete or not at all. A report of that name is replaced.

        Args:
            path: ends in ``.html``, ``.md`` or ``.json``, which is the format.
            force: replace any file of that name.

        Raises:
            ema_cli.errors.UsageError: there is no such format.
            ema_cli.errors.OutputError: another file has this name, or it cannot be written.

        """
        with keywords_in_errors():
            save_report(self, locate(os.fspath(path)), force=force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and all(
            getattr(self, field.name) == getattr(other, field.name) for field in fields(self)
        )

    __hash__ = Report.__hash__

    def __repr__(self) -> str:
        outputs = [quoted(words.output_path(average.output)) for average in self.averages]
        count = plural(len(self.averages[0].diagnostics.implied_lr), "checkpoint")
        warnings = plural(len(self.warnings), "warning") if self.warnings else "no warnings"
        return f"<Report: {_averages(self)}; {count} -> {shortlist(outputs, most=_MOST_OUTPUTS)}; {warnings}>"

    def _repr_html_(self) -> str:
        from ema_cli.report.html import fragment  # noqa: PLC0415

        return fragment(self)


def _averages(report: Report) -> str:
    """Return the definition of the average, or the number of averages."""
    if len(report.averages) != 1:
        return plural(len(report.averages), "average")
    (average,) = report.averages
    return safe_text(words.definition(average.method, average.diagnostics.mean_age_unit))
