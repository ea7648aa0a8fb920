"""HTML that opens offline, without scripts, styles, fonts or images from elsewhere: a report, its beginning, an index.

All text from files is made safe for display and then escaped by the templates, which escape everything except the
charts of ``ema_cli.report.charts``. The page is complete without its script, which sorts and searches tables; the
policy of the page allows this script alone, by its digest.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ema_cli.report import run_tables, sections, tables
from ema_cli.report.batch_index import BatchIndex, JobEntry
from ema_cli.report.model import Report
from ema_cli.report.redaction import REMOVED, redacted_index, redacted_report
from ema_cli.text import number, plural, printable, regex, safe_lines, safe_text, shortlist

_HERE = Path(__file__).parent
_MOST_INPUTS = 400
_MOST_FAILED = 20
"""Failed runs with their errors above the table of an index."""
_MOST_ERROR_LINES = 6
_BREAK = regex(r"([^\s./_:=-]{4,}[./_:=-]+(?=[^\s./_:=-]{2})|(?<=\w)[./_](?=[^\W_]{8}))")
"""Where a long name may break: after a separator, not too near to the one before unless much follows."""
_WHOLE = regex(r"((?<![^\s(])(?:--?[a-z][\w-]{0,30}|ema-avg [a-z-]{1,20})(?![\w-]))")
"""What a hint must not break: an option, the name of a command."""
_SHORTEST_BROKEN = 12


def to_html(report: Report) -> str:
    """Return the page of a report, below 300 kB for 50 checkpoints of 1,000 tensors."""
    report = redacted_report(report)
    inputs = run_tables.input_rows(report)
    return _fill(
        "page.html.j2",
        tool=report.tool,
        report=report,
        input_titles=run_tables.INPUT_TITLES,
        inputs=tables.cut_middle(inputs, _MOST_INPUTS, lambda count: [f"… {count:,} more", *[""] * 5]),
        outputs=run_tables.output_rows(report),
        timing=run_tables.timing_rows(report),
        options=run_tables.option_rows(report),
        command=run_tables.command_parts(report.command.argv),
        config=run_tables.config_line(report.command.config),
        removed=REMOVED if report.command.secrets_removed else "",
        environment=run_tables.environment_line(report),
        **sections.heading(report),
        **sections.of_page(report),
    )


def fragment(report: Report) -> str:
    """Return the beginning of the page, the verdict with its warnings and the first chart, to be shown in a notebook.

    Its style applies to nothing else.
    """
    report = redacted_report(report)
    return _fill("fragment.html.j2", chart=sections.first_chart(report), **sections.heading(report))


def index_to_html(index: BatchIndex) -> str:
    """Return the page of a batch index; it links to each report, relative to its folder."""
    index = redacted_index(index)
    failed = [entry for entry in index.jobs if entry.error is not None]
    more = len(failed) - _MOST_FAILED
    return _fill(
        "index.html.j2",
        tool=index.tool,
        title=plural(index.summary.jobs, "run"),
        counts=_counts(index),
        failed=[_failed_view(entry) for entry in failed[:_MOST_FAILED]],
        more_failed=f"The errors of {plural(more, 'more run')} are in the table." if more > 0 else "",
        jobs=[_job_view(entry, explained=entry in failed[:_MOST_FAILED]) for entry in index.jobs],
        command=run_tables.command_parts(index.command.argv),
        config=run_tables.config_line(index.command.config),
        removed=REMOVED if index.command.secrets_removed else "",
    )


def _fill(template: str, **values: object) -> str:
    """Return a template with values filled in, escaped unless they are ``Markup``."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    environment.filters |= {
        "breakable": lambda text: breakable(_printable(text)),
        "hint": lambda text: hint(_printable(text)),
        "plural": plural,
    }
    script = _read("templates/page.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    style = _read("templates/page.css") + _read("charts/charts.css")
    files = {"style": style, "nested_style": style.replace(":root", "&"), "script": script}
    own = {name: Markup(text) for name, text in files.items()}  # noqa: S704 - files of the package
    return environment.get_template(template).render(script_digest=f"sha256-{digest}", **own, **values)


def _printable(value: Any) -> Any:  # noqa: ANN401 - what a template has
    """Return text without control characters and marks of direction, also where a report should have a plain word."""
    is_plain = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, kept="\n\N{NO-BREAK SPACE}") if is_plain else value


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def breakable(text: str) -> Markup:
    """Escape text, and let it break at dots, slashes and underscores where it is long."""
    escaped = str(escape(text))
    return Markup(_BREAK.sub(r"\1<wbr>", escaped)) if len(text) > _SHORTEST_BROKEN else Markup(escaped)  # noqa: S704


def hint(text: str) -> Markup:
    """Escape the text of a hint; it does not break at the hyphens of options and commands."""
    whole = Markup('<span class="whole">{}</span>')
    pieces = enumerate(_WHOLE.split(text))
    return Markup("").join(whole.format(piece) if k % 2 else breakable(piece) for k, piece in pieces)


def _counts(index: BatchIndex) -> str:
    """Return how many runs ended in which way, and how long that took."""
    summary = index.summary
    counts = {
        "written": summary.written,
        "up to date": summary.up_to_date,
        "planned": summary.planned,
        "failed": summary.failed,
    }
    shown = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    return f"{shown or 'No runs'}, in {number(summary.seconds)} s."


def _failed_view(entry: JobEntry) -> dict[str, object]:
    error = entry.error
    return {
        "run": safe_text(entry.run),
        "error": {
            "message": safe_lines(error.message, most=_MOST_ERROR_LINES) if error else [],
            "hint": " ".join(safe_lines(error.hint)) if error else "",
            "code": f"exit {error.exit_code}" if error else "",
        },
    }


def _job_view(entry: JobEntry, *, explained: bool) -> dict[str, object]:
    """Return the values of a row; the error is in it unless it is ``explained`` above."""
    error = "" if entry.error is None or explained else " ".join(entry.error.message.split())
    return {
        "run": safe_text(entry.run),
        "status": entry.status,
        "result": entry.status.replace("_", " "),
        "checkpoints": f"{entry.checkpoints:,}" if entry.checkpoints else "",
        "seconds": f"{entry.seconds:,.2f}",
        "note": safe_text(error, limit=400, whole=False) or shortlist(entry.warnings),
        "links": [{"url": _relative_link(path), "name": path.rpartition(".")[2]} for path in entry.reports],
    }


def _relative_link(path: str) -> str:
    """Return a path as a relative link: no part of it is taken for a scheme, a query or a fragment."""
    return "./" + quote(path.encode(errors="surrogateescape"), safe="/")
