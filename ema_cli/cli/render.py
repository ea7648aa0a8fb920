"""What people see: the plan, the outcome and the contents of a checkpoint, as rich renderables on the console."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ema_cli.cli.console import Console
from ema_cli.fold.devices import resolve_device
from ema_cli.options import Options
from ema_cli.pipeline import Outcome
from ema_cli.records import Action, Checkpoint, LeftOut, Plan, PlannedOutput
from ema_cli.report.build import diagnose_output, parameters
from ema_cli.report.model import Average, Report
from ema_cli.text import human_bytes, plural, quoted, safe_text, shortlist
from ema_cli.uptodate import report_path
from ema_cli.weights.diagnostics import percent

_MOST_ROWS = 24
_BAR_WIDTH = 24
_DIGEST_SHOWN = 16
_MEANINGFUL = 0.1
"""Seconds below which a speed says nothing."""


def plan(made: Plan, options: Options, console: Console) -> None:
    """Show the order, the shares, and what will be read and written."""
    checkpoints = made.checkpoints
    formats = shortlist(sorted({checkpoint.format for checkpoint in checkpoints}))
    folder = _common_folder([checkpoint.path for checkpoint in checkpoints])
    shown = _shortest(folder)
    console.talk(f"{plural(len(checkpoints), 'checkpoint')} in {safe_text(shown)}, {formats}, {made.series.reason}")
    for line in _where_the_weights_are(checkpoints):
        console.talk(line)
    console.talk(_shares_table(made, folder, all_rows=console.style.verbose))
    left_out(made.series.left_out, console)
    for output in made.outputs:
        console.talk(_sentence(made, output))
    averaged = sum(tensor.action is Action.AVERAGED for tensor in made.tensors)
    copied = len(made.tensors) - averaged
    console.talk(
        f"{plural(averaged, 'tensor')} averaged"
        + (f", {copied:,} copied" if copied else "")
        + f"; {plural(parameters(made), 'parameter')}"
    )
    console.talk(
        f"reads {human_bytes(made.read_bytes)}, writes {human_bytes(made.write_bytes)}; "
        f"{resolve_device(options.device)}, {plural(made.buffers.threads, 'thread')}, "
        f"{human_bytes(made.buffers.total_bytes)} of buffers"
    )


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
    size = human_bytes(found.index.source.size())
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


def left_out(entries: Sequence[LeftOut], console: Console) -> None:
    """Name the inputs that were found and not used."""
    for entry in entries:
        console.talk(f"left out {quoted(str(entry.path))}: {entry.reason}")


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


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent.absolute() for path in paths])) if paths else Path()


def _shortest(folder: Path) -> str:
    """Return the folder as seen from here, where that is shorter."""
    try:
        return min(str(folder), os.path.relpath(folder), key=len)
    except OSError:  # the working directory was deleted
        return str(folder)


def _where_the_weights_are(checkpoints: Sequence[Checkpoint]) -> list[str]:
    lines = []
    keys = Counter(checkpoint.key for checkpoint in checkpoints if checkpoint.key)
    if keys:
        lines.append(f"weights under {shortlist(quoted(key) for key in keys)}")
    prefixes = Counter(prefix for checkpoint in checkpoints for prefix in checkpoint.stripped)
    if prefixes:
        lines.append(f"prefixes taken off the names: {', '.join(prefixes)}")
    return lines


def _shares_table(made: Plan, folder: Path, *, all_rows: bool) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("from")
    for output in made.outputs:
        table.add_column(_short_name(output) if len(made.outputs) > 1 else "share", justify="right", no_wrap=True)
    if len(made.outputs) == 1:
        table.add_column("")
    rows = list(range(len(made.series.members)))
    cut = not all_rows and len(rows) > _MOST_ROWS
    for row in [*rows[: _MOST_ROWS // 2], *rows[-_MOST_ROWS // 2 :]] if cut else rows:
        if cut and row == len(rows) - _MOST_ROWS // 2:
            table.add_row("…", f"{len(rows) - _MOST_ROWS:,} more (-v shows them)")
        table.add_row(*_share_row(made, folder, row))
    return table


def _share_row(made: Plan, folder: Path, row: int) -> list[str | Text]:
    member = made.series.members[row]
    path = member.checkpoint.path
    name = str(path.absolute().relative_to(folder)) if path.absolute().is_relative_to(folder) else str(path)
    shares = [output.weighting.weights[row] for output in made.outputs]
    cells: list[str | Text] = [
        str(row + 1),
        Text(safe_text(name)),
        f"{member.step.value:,}" if member.step else "",
        Text(member.step.source if member.step else ""),
        *(percent(share) for share in shares),
    ]
    if len(shares) == 1:
        largest = max(made.outputs[0].weighting.weights)
        cells.append(Text("█" * round(_BAR_WIDTH * shares[0] / largest), style="cyan"))
    return cells


def _short_name(output: PlannedOutput) -> str:
    method = output.weighting.method
    return method.name if method.decay is None else f"d={method.decay:.6g}"


def _sentence(made: Plan, output: PlannedOutput) -> str:
    method = output.weighting.method
    found = diagnose_output(made.series, output)
    if method.decay is None:
        name = "plain mean"
    else:
        half = f" (half-life {method.half_life:g})" if method.half_life is not None else ""
        start = "E_1 = theta_1" if method.init == "first" else "debiased"
        name = f"ema, decay {method.decay:.6g}{half} per checkpoint, {start}"
    age = plural_float(found.mean_age, found.mean_age_unit)
    return f"{name}: counts as {found.effective_checkpoints:.1f} checkpoints, mean age {age}"


def plural_float(value: float, noun: str) -> str:
    """Return a measured number with its noun: ``312.5 steps``."""
    return f"{value:,.4g} {noun}s"


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
    return (
        f"{verb} {output.path}  {human_bytes(output.bytes)}  {plural(len(report.inputs), 'checkpoint')}{took}"
        f"  sha256 {output.sha256[:_DIGEST_SHOWN]}…"
    )
