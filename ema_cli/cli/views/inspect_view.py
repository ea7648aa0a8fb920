"""The content of a checkpoint on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import PurePath

from ema_cli.cli.console import Console
from ema_cli.cli.table import Column, Table, whole_name
from ema_cli.cli.wrapping import Styled
from ema_cli.dtypes import DType
from ema_cli.records.series import Checkpoint, Mark
from ema_cli.report import words
from ema_cli.text import human_bytes, plural, quoted, safe_text, shortlist

_MOST_NAMES = 8
_ALL_NAMES = 1000
_BY_MARK = {
    Mark.OURS: "ema-avg, by the report beside it",
    Mark.CHANGED: "unknown: not the output that its report lists",
}


def show_checkpoint(checkpoint: Checkpoint, console: Console) -> None:
    """Show on stdout the path and format of a checkpoint, a table of facts, and with ``-v`` every tensor."""
    size = human_bytes(checkpoint.index.size())
    console.result(Styled((whole_name(str(checkpoint.path)), "bold"), f"  {checkpoint.format}, {size}"))
    most = _ALL_NAMES if console.style.verbose else _MOST_NAMES
    facts = [(label, value) for label, value in _facts(checkpoint, most) if value]
    console.result(Table(columns=[Column(), Column(name=True)], rows=facts, indent=2))
    if console.style.verbose:
        columns = [Column(title="tensor", name=True), Column(title="type"), Column(title="shape")]
        layouts = checkpoint.index.layouts
        rows = [(whole_name(one.name), one.dtype.torch_name, str(one.shape)) for one in layouts]
        console.result(Table(columns=columns, rows=rows))


def _facts(checkpoint: Checkpoint, most: int) -> Iterator[tuple[str, str]]:
    layouts = checkpoint.index.layouts
    names = [quoted(PurePath(source.name).name) for source in checkpoint.index.sources]
    yield "files", f"{len(names):,}: {shortlist(names, most=most)}" if len(names) > 1 else ""
    yield "weights", f"under {words.weights_keys([checkpoint.key])}" if checkpoint.key else "at the top level"
    yield "prefix", f"removed: {', '.join(checkpoint.stripped)}" if checkpoint.stripped else ""
    steps = shortlist(f"{step.unit} {step.value:,} ({step.source})" for step in checkpoint.steps)
    yield "step", steps or "none inside"
    yield from zip(chain(["tensors"], repeat("")), _types(checkpoint), strict=False)
    split = [layout for layout in layouts if layout.pieces > 1]
    pieces = sum(layout.pieces for layout in split)
    yield "pieces", f"{plural(len(split), 'tensor')} in {plural(pieces, 'piece')}" if split else ""
    yield "tied", shortlist(f"{quoted(name)} to {quoted(first)}" for name, first in checkpoint.ties.items())
    yield "strided", shortlist(quoted(layout.name) for layout in layouts if layout.strides is not None)
    yield "unreadable", shortlist((f"{quoted(name)} {why}" for name, why in checkpoint.unreadable), most=most)
    yield "quantized", checkpoint.quantized
    yield "ignored", shortlist(map(quoted, checkpoint.ignored), most=most)
    yield "side files", shortlist(map(quoted, checkpoint.side_files), most=most)
    yield "made by", "ema-avg" if checkpoint.has_our_metadata else _BY_MARK.get(checkpoint.mark, "")
    yield "metadata", shortlist(f"{safe_text(k)}={safe_text(v)}" for k, v in sorted(checkpoint.metadata.items()))
    yield "choice", "; ".join(checkpoint.choice)
    yield "warnings", "; ".join((*(warning.message for warning in checkpoint.dropped), *checkpoint.warnings))


def _types(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for each element type; the most bytes come first."""
    tensors, parameters, nbytes = Counter[DType](), Counter[DType](), Counter[DType]()
    for layout in checkpoint.index.layouts:
        tensors[layout.dtype] += 1
        parameters[layout.dtype] += layout.elements
        nbytes[layout.dtype] += layout.nbytes
    for dtype, size in nbytes.most_common():
        counts = f"{plural(tensors[dtype], 'tensor')}, {plural(parameters[dtype], 'parameter')}"
        yield f"{dtype.torch_name}: {counts}, {human_bytes(size)}"
