"""What people see of an outcome and of the contents of a checkpoint, as rich renderables on the console."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ema_cli.cli.console import Console
from ema_cli.options import Options
from ema_cli.pipeline import Outcome
from ema_cli.records import Checkpoint
from ema_cli.report.model import Average, Report
from ema_cli.text import human_bytes, percent, plural, quoted, safe_text, shortlist
from ema_cli.uptodate import report_path

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
        path = Path(average.output.path)
        console.talk(f"report {safe_text(str(report_path(path)))}")
        console.result(_result_line(report, average, up_to_date=done.up_to_date))
    for path in options.reports:
        console.talk(f"report {safe_text(str(path))}")


def checkpoint(found: Checkpoint, console: Console) -> None:
    """Show what is in a checkpoint."""
    layouts = found.index.layouts
    size = human_bytes(found.index.size())
    console.talk(Text.assemble((safe_text(str(found.path)), "bold"), f"  {found.format}, {size}"))
    rows = {
        "weights": f"under {quoted(found.key)}" if found.key else "at the top level",
        "prefix": f"taken off: {', '.join(found.stripped)}" if found.stripped else "",
        "step": shortlist(f"{step.unit} {step.value:,} ({step.source})" for step in found.steps) or "none inside",
        "tensors": f"{len(layouts):,}, {sum(layout.elements for layout in layouts):,} elements",
        "types": _types(found),
        "tied": shortlist(f"{quoted(name)} to {quoted(first)}" for name, first in found.ties.items()),
        "strided": shortlist(quoted(layout.name) for layout in layouts if layout.strides is not None),
        "beside": shortlist((quoted(name) for name in found.ignored), most=1000 if console.style.verbose else 8),
        "metadata": shortlist(f"{safe_text(k)}={safe_text(v)}" for k, v in sorted(found.metadata.items())),
        "note": "; ".join(found.notes),
    }
    table = Table.grid(padding=(0, 2))
    for label, value in rows.items():
        if value:
            table.add_row(f"  {label}", Text(value))
    console.talk(table)
    if console.style.verbose:
        console.talk(_tensor_table(found))


def _types(found: Checkpoint) -> str:
    counts = Counter[str]()
    for layout in found.index.layouts:
        counts[layout.dtype.torch_name] += layout.nbytes
    return ", ".join(f"{name} {human_bytes(nbytes)}" for name, nbytes in counts.most_common())


def _tensor_table(found: Checkpoint) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    for title in ("tensor", "type", "shape"):
        table.add_column(title, overflow="fold")
    for layout in found.index.layouts:
        table.add_row(Text(safe_text(layout.name)), layout.dtype.torch_name, str(layout.shape))
    return table


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
        f"{verb} {output.path}  {human_bytes(output.bytes)}  {plural(count, 'checkpoint')}{took}"
        f"  sha256 {output.sha256[:_DIGEST_SHOWN]}…"
    )
