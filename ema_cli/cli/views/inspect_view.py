"""What people see of the contents of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import PurePath

from rich.table import Table
from rich.text import Text

from ema_cli.cli.console import Console
from ema_cli.dtypes import DType
from ema_cli.records.series import Checkpoint
from ema_cli.text import human_bytes, plural, quoted, safe_text, shortlist

_MOST_BESIDE = 8
_ALL = 1000


def checkpoint(found: Checkpoint, console: Console) -> None:
    """Show what is in a checkpoint: one line of what it is, a grid of facts, and with ``-v`` every tensor."""
    size = human_bytes(found.index.size())
    console.talk(Text.assemble((safe_text(str(found.path)), "bold"), f"  {found.format}, {size}"))
    table = Table.grid(padding=(0, 2))
    for label, value in _facts(found, _ALL if console.style.verbose else _MOST_BESIDE):
        if value:
            table.add_row(f"  {label}", Text(value))
    console.talk(table)
    if console.style.verbose:
        console.talk(_tensor_table(found))


def _facts(found: Checkpoint, most: int) -> Iterator[tuple[str, str]]:
    layouts = found.index.layouts
    names = [quoted(PurePath(source.name).name) for source in found.index.sources]
    yield "files", f"{len(names):,}: {shortlist(names, most=most)}" if len(names) > 1 else ""
    yield "weights", f"under {quoted(found.key)}" if found.key else "at the top level"
    yield "prefix", f"taken off: {', '.join(found.stripped)}" if found.stripped else ""
    steps = shortlist(f"{step.unit} {step.value:,} ({step.source})" for step in found.steps)
    yield "step", steps or "none inside"
    yield from zip(chain(["tensors"], repeat("")), _types(found), strict=False)
    parted = [layout for layout in layouts if layout.parts]
    pieces = sum(len(layout.parts) for layout in parted)
    yield "pieces", f"{plural(len(parted), 'tensor')} in {plural(pieces, 'piece')}" if parted else ""
    yield "tied", shortlist(f"{quoted(name)} to {quoted(first)}" for name, first in found.ties.items())
    yield "strided", shortlist(quoted(layout.name) for layout in layouts if layout.strides is not None)
    yield "unreadable", shortlist((f"{quoted(name)} {why}" for name, why in found.unreadable), most=most)
    yield "quantized", found.quantized
    yield "ignored", shortlist(map(quoted, found.ignored), most=most)
    yield "goes along", shortlist(map(quoted, found.side_files), most=most)
    yield "metadata", shortlist(f"{safe_text(k)}={safe_text(v)}" for k, v in sorted(found.metadata.items()))
    yield "note", "; ".join(found.warnings)


@dataclass(slots=True)
class _Total:
    """The tensors of one element type together."""

    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0


def _types(found: Checkpoint) -> Iterator[str]:
    """Yield a line for each element type, the one with most bytes first."""
    totals: dict[DType, _Total] = {}
    for layout in found.index.layouts:
        total = totals.setdefault(layout.dtype, _Total())
        total.tensors += 1
        total.parameters += layout.elements
        total.nbytes += layout.nbytes
    for dtype, total in sorted(totals.items(), key=lambda item: -item[1].nbytes):
        counts = f"{plural(total.tensors, 'tensor')}, {plural(total.parameters, 'parameter')}"
        yield f"{dtype.torch_name}: {counts}, {human_bytes(total.nbytes)}"


def _tensor_table(found: Checkpoint) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    for title in ("tensor", "type", "shape"):
        table.add_column(title, overflow="fold")
    for layout in found.index.layouts:
        table.add_row(Text(safe_text(layout.name)), layout.dtype.torch_name, str(layout.shape))
    return table
