"""Recomputed BatchNorm statistics on the terminal: how far they moved, and the file."""

from __future__ import annotations

from ema_cli.cli.console import Console
from ema_cli.cli.table import Column, Table, numbers, whole_name
from ema_cli.report import words
from ema_cli.report.beside import report_path
from ema_cli.report.model import BatchNormLayer, BatchNormUpdate, Report, StatisticChange
from ema_cli.storage.locations import locate
from ema_cli.text import number, plural, safe_text

_MOST_ROWS = 20
_DIGEST_SHOWN = 16
_UNDEFINED = "-"


def show_update(report: Report, console: Console) -> None:
    """Show the layers and the path of the report on stderr, and the output on stdout."""
    update = report.batch_norm
    if update is None or console.style.quiet:
        return
    (average,), (checkpoint,) = report.averages, report.inputs
    if checkpoint.key:
        console.talk(f"weights under {words.weights_keys([checkpoint.key])}")
    for note in checkpoint.notes:
        if not any(note in warning.message for warning in report.warnings):  # shown when it was found
            console.talk(note)
    _show_layers(update, console)
    size = words.output_size(average.output)
    line = f"wrote {words.output_path(average.output)}  {size}  {_used(update)}  {report.summary.seconds:,.2f} s"
    console.result(f"{line}  sha256 {average.output.sha256[:_DIGEST_SHOWN]}…", essential=False)
    console.talk(f"report {safe_text(str(report_path(locate(average.output.path))))}")


def _used(update: BatchNormUpdate) -> str:
    batches = f"{update.batches:,} batch{'' if update.batches == 1 else 'es'}"
    return batches if update.samples is None else f"{batches}, {plural(update.samples, 'sample')}"


def _show_layers(update: BatchNormUpdate, console: Console) -> None:
    titles = ("channels", "batches", "|mean|", "|var|", "largest\nchange")
    shown = update.layers if console.style.verbose else update.layers[:_MOST_ROWS]
    rows = [_row(layer) for layer in shown]
    console.talk(Table(columns=[Column(title="layer", name=True), *numbers(*titles)], rows=rows))
    if len(shown) < len(update.layers):
        console.talk(f"and {len(update.layers) - len(shown):,} more layers (-v shows them)")


def _row(layer: BatchNormLayer) -> list[str]:
    return [
        whole_name(layer.name) or "(the model)",
        f"{layer.channels:,}",
        f"{layer.batches:,}",
        _change(layer.mean),
        _change(layer.variance),
        f"{_number(layer.mean.largest_change)}, {_number(layer.variance.largest_change)}",
    ]


def _change(change: StatisticChange) -> str:
    return f"{_number(change.norm_before)} -> {_number(change.norm_after)}"


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else number(value)
