"""The checks on the terminal: two checkpoints compared, and an output verified."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ema_cli.cli.console import Console
from ema_cli.cli.table import Column, Table, numbers, whole_name
from ema_cli.records.series import Checkpoint
from ema_cli.report import words
from ema_cli.text import cosine, number, plural, quoted, safe_text, shortlist

if TYPE_CHECKING:  # each of the two commands needs only its own
    from ema_cli.compare import Comparison, TensorComparison
    from ema_cli.verification.checks import Verification

_MOST_ROWS = 20
_MOST_NAMES = 8
_ALL_NAMES = 1000
_UNDEFINED = "-"


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Show on stdout how the checkpoints differ, tensor by tensor and in one line."""
    for label, checkpoint in (("a", comparison.a), ("b", comparison.b)):
        console.result(_headline(label, checkpoint))
    most = _ALL_NAMES if console.style.verbose else _MOST_NAMES
    for label, names in _only_in_one(comparison):
        listed = shortlist((quoted(name) for name in names), most=most)
        console.result(f"only in {label}: {plural(len(names), 'tensor')}: {listed}")
    _show_tensors(comparison, console)
    console.result(_comparison_result(comparison))


def show_verification(verification: Verification, console: Console) -> None:
    """Show on stdout the checks that passed (the inputs one by one only if verbose), and the result.

    Raises:
        VerificationFailed: checks failed; the error lists them.

    """
    inputs = [check for check in verification.checks if check.name.startswith("input")]
    passed = sum(check.ok and not check.unchecked for check in inputs)
    for check in verification.checks:
        if check.ok and (check not in inputs or check.unchecked or console.style.verbose):
            console.result(f"{'--' if check.unchecked else 'ok'}  {check.name}: {check.message}")
        if check in inputs[-1:] and passed and not console.style.verbose:
            console.result(f"ok  inputs: {passed:,} of {len(inputs):,} unchanged")
    verification.raise_if_failed()
    scope = f"  {plural(passed, 'input')}  {plural(verification.samples, 'piece')} recomputed" if inputs else ""
    left_out = f" except {', '.join(verification.unchecked)}" if verification.unchecked else ""
    console.result(f"verified {verification.output}{left_out}{scope}")


def _comparison_result(comparison: Comparison) -> str:
    """Return whether the checkpoints are equal and, if not, how far apart they are."""
    tensors, total = comparison.tensors, comparison.total
    if comparison.equal:
        return f"equal  {comparison.a.path}  {comparison.b.path}  {plural(len(tensors), 'tensor')}"
    parts = [f"{len(comparison.different):,} of {plural(len(tensors), 'common tensor')}"]
    parts += [f"{len(names):,} only in {label}" for label, names in _only_in_one(comparison)]
    numbers = f"max |a-b| {_number(total.max_abs)}, relative L2 {_number(total.relative_l2)}"
    return f"different: {', '.join(parts)}; {numbers}, cosine {_cosine(total.cosine)}"


def _only_in_one(comparison: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    return [(label, names) for label, names in (("a", comparison.only_in_a), ("b", comparison.only_in_b)) if names]


def _headline(label: str, checkpoint: Checkpoint) -> str:
    key = f", weights under {words.weights_keys([checkpoint.key])}" if checkpoint.key else ""
    prefixes = f", prefixes removed: {safe_text(', '.join(checkpoint.stripped))}" if checkpoint.stripped else ""
    return f"{label}: {safe_text(str(checkpoint.path))}, {checkpoint.format}{key}{prefixes}"


def _show_tensors(comparison: Comparison, console: Console) -> None:
    """Show all common tensors in file order if verbose, else the most different ones."""
    rows = comparison.tensors if console.style.verbose else sorted(comparison.different, key=_distance, reverse=True)
    if not rows:
        return
    shown = rows if console.style.verbose else rows[:_MOST_ROWS]
    same = all(tensor.a.dtype is tensor.b.dtype and tensor.a.shape == tensor.b.shape for tensor in shown)
    columns = [
        Column(title="tensor", name=True),
        *(Column(title=title, optional=same) for title in ("shape", "type")),
        *numbers("differ", "max |a-b|", "relative L2", "cosine"),
    ]
    console.result(Table(columns=columns, rows=[_row(tensor) for tensor in shown]))
    if len(shown) < len(rows):
        console.result(f"and {len(rows) - len(shown):,} more (-v shows them)")


def _distance(tensor: TensorComparison) -> tuple[float, float]:
    """Return the sort key: unmeasured tensors first, then by relative distance, then by differing elements."""
    relative = tensor.distance.relative_l2
    unmeasured = tensor.distance.max_abs is None or (relative is None and tensor.a.dtype.averaged)
    return (math.inf if unmeasured else relative or 0.0, tensor.distance.differing or 0)


def _row(tensor: TensorComparison) -> list[str]:
    distance = tensor.distance
    return [
        whole_name(tensor.name),
        _both(str(tensor.a.shape), str(tensor.b.shape)),
        _both(tensor.a.dtype.torch_name, tensor.b.dtype.torch_name),
        _UNDEFINED if distance.differing is None else f"{distance.differing:,} of {tensor.a.elements:,}",
        _number(distance.max_abs),
        _number(distance.relative_l2),
        _cosine(distance.cosine),
    ]


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} / {b}"


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else number(value)


def _cosine(value: float | None) -> str:
    return _UNDEFINED if value is None else cosine(value)
