"""What people see of a comparison: a table of the tensors that differ most, and one line of result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ema_cli.cli.console import Console
from ema_cli.compare import Comparison, TensorComparison
from ema_cli.records.series import Checkpoint
from ema_cli.text import plural, quoted, safe_text, shortlist

_MOST_ROWS = 20
_MOST_NAMES = 8
_ALL_NAMES = 1000
_UNDEFINED = "-"


def comparison(found: Comparison, console: Console) -> None:
    """Show where the checkpoints differ, and the result on stdout."""
    for label, checkpoint in (("a", found.a), ("b", found.b)):
        console.talk(_headline(label, checkpoint))
    most = _ALL_NAMES if console.style.verbose else _MOST_NAMES
    for label, names in (("a", found.only_in_a), ("b", found.only_in_b)):
        if names:
            listed = shortlist((quoted(name) for name in names), most=most)
            console.talk(f"only in {label}: {plural(len(names), 'tensor')}: {listed}")
    _tensors(found, console)
    console.result(result_line(found))


def result_line(found: Comparison) -> str:
    """Say whether the checkpoints are equal and, if not, how far they are apart."""
    if found.equal:
        return f"equal  {found.a.path}  {found.b.path}  {plural(len(found.tensors), 'tensor')}"
    parts = [f"{len(found.different):,} of {plural(len(found.tensors), 'common tensor')}"]
    parts += [f"{len(names):,} only in {label}" for label, names in _missing(found) if names]
    total = found.total
    numbers = f"max |a-b| {_number(total.max_abs)}, relative L2 {_number(total.relative_l2)}"
    return f"different: {', '.join(parts)}; {numbers}, cosine {_cosine(total.cosine)}"


def _missing(found: Comparison) -> Sequence[tuple[str, tuple[str, ...]]]:
    return ("a", found.only_in_a), ("b", found.only_in_b)


def _headline(label: str, checkpoint: Checkpoint) -> str:
    place = f", weights under {quoted(checkpoint.key)}" if checkpoint.key else ""
    prefixes = f", taken off: {safe_text(', '.join(checkpoint.stripped))}" if checkpoint.stripped else ""
    return f"{label}: {safe_text(str(checkpoint.path))}, {checkpoint.format}{place}{prefixes}"


def _tensors(found: Comparison, console: Console) -> None:
    """Show all tensors in file order, or those that differ most; nothing if there are none."""
    rows = found.tensors if console.style.verbose else sorted(found.different, key=_distance, reverse=True)
    if not rows:
        return
    table = Table(box=None, pad_edge=True, header_style="dim")
    for title in ("tensor", "type", "shape"):
        table.add_column(title, overflow="fold")
    for title in ("differ", "max |a-b|", "relative L2", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    shown = rows if console.style.verbose else rows[:_MOST_ROWS]
    for tensor in shown:
        table.add_row(*_row(tensor))
    console.talk(table)
    if len(shown) < len(rows):
        console.talk(f"and {len(rows) - len(shown):,} more (-v shows them)")


def _distance(tensor: TensorComparison) -> tuple[float, float]:
    """Sort what could not be measured first, then by relative distance, then by the number of elements."""
    far = tensor.distance.relative_l2
    unknown = tensor.distance.max_abs is None or (far is None and tensor.a.dtype.averaged)
    return (math.inf if unknown else far or 0.0, tensor.distance.differing or 0)


def _row(tensor: TensorComparison) -> list[str | Text]:
    distance = tensor.distance
    return [
        Text(safe_text(tensor.name)),
        _both(tensor.a.dtype.torch_name, tensor.b.dtype.torch_name),
        _both(str(tensor.a.shape), str(tensor.b.shape)),
        _UNDEFINED if distance.differing is None else f"{distance.differing:,} of {tensor.a.elements:,}",
        _number(distance.max_abs),
        _number(distance.relative_l2),
        _cosine(distance.cosine),
    ]


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} / {b}"


def _number(value: float | None) -> str:
    if value is None:
        return _UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _cosine(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.6f}"
