"""The page of a batch: all runs in a table, and above it why some failed."""

from __future__ import annotations

from ema_cli.report.batch_index import BatchIndex, BatchSummary, JobEntry, JobError
from ema_cli.report.html import index_to_html
from ema_cli.report.model import Command, Tool
from tests.helpers.html_page import Page


def job(run: str, *, error: JobError | None = None, warnings: tuple[str, ...] = ()) -> JobEntry:
    """Return an entry of an index."""
    return JobEntry(
        run=run, status="failed" if error else "written", outputs=(), reports=() if error else (f"{run}/e.html",),
        checkpoints=0 if error else 3, seconds=0.25, warnings=warnings, error=error,
    )  # fmt: skip


def index(*jobs: JobEntry) -> BatchIndex:
    """Return an index of some jobs."""
    failed = sum(one.error is not None for one in jobs)
    return BatchIndex(
        schema_version="1.3",
        tool=Tool(name="ema-avg", version="1"),
        command=Command(argv=("ema-avg", "batch", "run a", "--decay", "0.5"), options={}),
        jobs=jobs,
        summary=BatchSummary(
            jobs=len(jobs), written=len(jobs) - failed, up_to_date=0, planned=0, failed=failed, seconds=1.5
        ),
    )


def test_errors_of_several_lines_keep_their_lines() -> None:
    """Each line is one, with the hint and the exit code; nothing shows an escaped line feed."""
    error = JobError(exit_code=3, message="the checkpoints are not of one model:\n  x\n  y", hint="name others")
    page = index_to_html(index(job("a"), job("b", error=error)))
    assert '<p>the checkpoints are not of one model:</p><p class="inner">  x</p><p class="inner">  y</p>' in page
    assert "\\n" not in Page(page.partition("<script>")[0]).text
    text = Page(page).text
    assert "1 written, 1 failed, in 1.50 s." in text
    assert "Try: name others" in text
    assert "exit 3" in text
    assert text.index("not of one model") < text.index("Runs")


def test_many_failures_are_in_the_table_only() -> None:
    """Above the table are 20 of them and their number; each error is in the page once."""
    errors = [JobError(exit_code=3, message=f"no {k}.", hint="") for k in range(25)]
    page = index_to_html(index(*(job(f"r{k}", error=error) for k, error in enumerate(errors))))
    text = Page(page).text
    assert "The errors of 5 more runs are in the table." in text
    assert all(text.count(f"no {k}.") == 1 for k in range(25))


def test_a_good_batch_says_so() -> None:
    """No run failed; warnings and links are in the rows, and the command is in shell quotes."""
    page = Page(index_to_html(index(job("a b", warnings=("plain-mean",)))))
    assert page.open == []
    assert "No run failed." in page.text
    assert "plain-mean" in page.text
    assert "ema-avg batch 'run a' --decay 0.5" in page.text
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == ["./a%20b/e.html"]
