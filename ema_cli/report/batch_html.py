"""The index of a batch as one HTML page that links to each report."""

from __future__ import annotations

from urllib.parse import quote

from ema_cli.report.batch_index import BatchIndex, JobEntry
from ema_cli.report.tables import command_line
from ema_cli.report.templates import fill
from ema_cli.text import plural, safe_text

_LONGEST_ERROR = 400
_RESULTS = {"written": "written", "up_to_date": "up to date", "planned": "planned", "failed": "failed"}


def to_html(index: BatchIndex) -> str:
    """Return the page; it opens offline, and its links are relative to its folder."""
    counts = [("written", index.summary.written), ("up to date", index.summary.up_to_date)]
    counts += [("planned", index.summary.planned)] if index.summary.planned else []
    return fill(
        "index.html.j2",
        title=f"{plural(index.summary.jobs, 'run')}, {index.summary.failed:,} failed",
        index=index,
        facts=[*counts, ("failed", index.summary.failed), ("seconds", f"{index.summary.seconds:.2f}")],
        jobs=[_job(entry) for entry in index.jobs],
        command=command_line(index.command.argv),
    )


def _job(entry: JobEntry) -> dict[str, object]:
    error = entry.error
    return {
        "run": safe_text(entry.run),
        "status": entry.status,
        "result": _RESULTS.get(entry.status, entry.status),
        "checkpoints": f"{entry.checkpoints:,}" if entry.checkpoints else "",
        "seconds": f"{entry.seconds:.2f}",
        "warnings": ", ".join(entry.warnings),
        "error": safe_text(f"{error.message} (exit {error.exit_code})", limit=_LONGEST_ERROR) if error else "",
        "links": [{"url": _url(path), "name": path.rpartition(".")[2]} for path in entry.reports],
    }


def _url(path: str) -> str:
    """Return a path as a relative link: nothing in it is taken for a scheme, a query or a fragment."""
    return "./" + quote(path.encode(errors="surrogateescape"), safe="/")
