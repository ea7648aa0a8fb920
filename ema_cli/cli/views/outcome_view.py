"""What people see of an outcome: the drift, the speed, and one line for each file."""

from __future__ import annotations

from pathlib import Path

from ema_cli.cli.console import Console
from ema_cli.options.average import Options
from ema_cli.pipeline import Outcome
from ema_cli.report import words
from ema_cli.report.beside import report_path
from ema_cli.report.model import Average, Report
from ema_cli.storage.locations import locate
from ema_cli.text import human_bytes, percent, plural, quoted, safe_text

_MOST_ROWS = 24
_BAR_WIDTH = 24
_DIGEST_SHOWN = 16
_MEANINGFUL = 0.1
"""Seconds below which a speed says nothing."""


def outcome(done: Outcome, options: Options, console: Console) -> None:
    """Show what came of it; the last lines, on stdout, say what lies where."""
    report = done.report
    for average in report.averages:
        if not done.up_to_date and len(report.inputs) > 1:
            label = "" if len(report.averages) == 1 else f"{Path(average.output.path).name}: "
            console.talk(safe_text(label) + _drift_line(average))
    if not done.up_to_date:
        summary = report.summary
        speed = f" ({human_bytes(summary.throughput_bytes_per_second)}/s)" if summary.fold_seconds > _MEANINGFUL else ""
        memory = f", peak memory {human_bytes(summary.peak_memory_bytes)}" if summary.peak_memory_bytes else ""
        console.talk(f"folded {human_bytes(summary.bytes_read)} in {summary.fold_seconds:.2f} s{speed}{memory}")
    for average in report.averages:
        path = locate(average.output.path)
        console.talk(f"report {safe_text(str(report_path(path)))}")
        console.result(_result_line(report, average, up_to_date=done.up_to_date), essential=False)
    for path in options.report:
        console.talk(f"report {safe_text(str(path))}")


def _drift_line(average: Average) -> str:
    drifts = [(t.drift, t.name) for t in average.tensors if t.drift is not None and t.tied_to is None]
    if not drifts:
        return "nothing to compare with the last checkpoint"
    most, median = max(drifts), sorted(drifts)[len(drifts) // 2]
    return f"drift from the last checkpoint: median {percent(median[0])}, most in {quoted(most[1])}, {percent(most[0])}"


def _result_line(report: Report, average: Average, *, up_to_date: bool) -> str:
    output = average.output
    verb = "up to date" if up_to_date else "wrote"
    took = "" if up_to_date else f"  {report.summary.seconds:.2f} s"
    count = len(average.diagnostics.implied_lr)  # those inside an earlier average included
    return (
        f"{verb} {words.place(output)}  {words.size(output)}  {plural(count, 'checkpoint')}{took}"
        f"  sha256 {output.sha256[:_DIGEST_SHOWN]}…"
    )
