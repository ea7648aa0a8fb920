"""The outcome of a run on the terminal: the drift, the speed, and one line per file."""

from __future__ import annotations

from ema_cli.cli.console import Console
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.average import Options
from ema_cli.pipeline import Outcome
from ema_cli.records.plan import Action
from ema_cli.report import tables, words
from ema_cli.report.beside import report_path
from ema_cli.report.model import Average, Report, Summary
from ema_cli.report.warning_rank import update_of
from ema_cli.storage.locations import locate
from ema_cli.text import human_bytes, percent, plural, quoted, safe_text

_DIGEST_SHOWN = 16
_SHORTEST_FOLD = 0.1
"""Seconds; the speed of shorter folds is not shown."""


def show_outcome(outcome: Outcome, options: Options, console: Console) -> None:
    """Show drift and speed of a run on stderr, a line for each output on stdout, and the paths of the reports."""
    if console.style.quiet:
        return
    report = outcome.report
    if not outcome.up_to_date:
        _show_drift(report, console)
        _show_speed(report.summary, console)
    for average in report.averages:
        console.result(_result_line(report, average, up_to_date=outcome.up_to_date), essential=False)
    for average in report.averages:
        side_files = words.side_files(average.output)
        if side_files:
            console.talk(f"side files in {words.output_path(average.output)}: {side_files}")
    beside = [report_path(locate(average.output.path)) for average in report.averages]
    for path in (*beside, *options.report):
        console.talk(f"report {safe_text(str(path))}")
    if options.buffers == "last" and not console.style.json:
        for average in report.averages:
            if any(is_batch_norm_statistic(tensor.name) for tensor in average.tensors):
                console.talk(f"recompute its BatchNorm statistics on your data: {update_of(average)}")


def _show_drift(report: Report, console: Console) -> None:
    """Show how far the tensors of each average are from the last checkpoint; nothing if it is the only one."""
    for average in report.averages if len(report.inputs) > 1 else ():
        label = "" if len(report.averages) == 1 else f"{tables.label(average)}: "
        tensors = tables.by_drift(average)
        if tensors:
            largest = f"{percent(tensors[-1].drift or 0)} in {quoted(tensors[-1].name)}"
            line = f"drift from the last checkpoint: median {tables.median_drift(average)}, largest {largest}"
        elif any(tensor.action == Action.CONCATENATED for tensor in average.tensors):  # of another shape than the last
            continue
        else:
            line = "no tensor has a drift from the last checkpoint"
        console.talk(label + line)


def _show_speed(summary: Summary, console: Console) -> None:
    speed = f" ({human_bytes(summary.throughput_bytes_per_second)}/s)" if summary.fold_seconds > _SHORTEST_FOLD else ""
    memory = f", peak memory {human_bytes(summary.peak_memory_bytes)}" if summary.peak_memory_bytes else ""
    console.talk(f"folded {human_bytes(summary.bytes_read)} in {summary.fold_seconds:,.2f} s{speed}{memory}")


def _result_line(report: Report, average: Average, *, up_to_date: bool) -> str:
    output = average.output
    verb = "up to date" if up_to_date else "wrote"
    took = "" if up_to_date else f"  {report.summary.seconds:,.2f} s"
    count = len(average.diagnostics.implied_lr)  # with those inside a previous average
    return (
        f"{verb} {words.output_path(output)}  {words.output_size(output)}  {plural(count, 'checkpoint')}{took}"
        f"  sha256 {output.sha256[:_DIGEST_SHOWN]}…"
    )
