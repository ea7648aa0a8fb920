"""Match the tensors of all checkpoints by name, and tell every difference that makes them different models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ema_cli.dtypes import Kind
from ema_cli.errors import InputRefused, UsageError
from ema_cli.options import Options
from ema_cli.records import Checkpoint
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import plural, quoted, shortlist

_MOST_DIFFERENCES = 12

Chosen = dict[str, tuple[int, TensorLayout]]
"""Tensors by name, with their position in the layout of a checkpoint."""


def choose_tensors(layouts: Sequence[TensorLayout], options: Options) -> Chosen:
    """Return the tensors that ``--include`` and ``--exclude`` leave.

    Raises:
        UsageError: they leave none.
        InputRefused: there are none to begin with.

    """
    include = [re.compile(pattern) for pattern in options.include]
    exclude = [re.compile(pattern) for pattern in options.exclude]

    def wanted(name: str) -> bool:
        if include and not any(pattern.search(name) for pattern in include):
            return False
        return not any(pattern.search(name) for pattern in exclude)

    chosen = {layout.name: (position, layout) for position, layout in enumerate(layouts) if wanted(layout.name)}
    if not chosen:
        why = "--include and --exclude leave no tensor" if layouts else "the checkpoints hold no tensors"
        raise UsageError(why) if layouts else InputRefused(why)
    return chosen


def refuse_differences(
    checkpoints: Sequence[Checkpoint], layout_numbers: Sequence[int], chosen: Sequence[Chosen]
) -> None:
    """Compare every layout with that of the last checkpoint and raise once for all differences."""
    last_name = quoted(checkpoints[-1].path.name)
    reference = chosen[layout_numbers[-1]]
    differences: list[str] = []
    for number, tensors in enumerate(chosen):
        if tensors is not reference:
            name = quoted(checkpoints[layout_numbers.index(number)].path.name)
            differences.extend(_differences(tensors, reference, name, last_name))
    if not differences:
        return
    lines = [f"  {line}" for line in differences[:_MOST_DIFFERENCES]]
    if len(differences) > _MOST_DIFFERENCES:
        lines.append(f"  and {len(differences) - _MOST_DIFFERENCES:,} more")
    raise InputRefused(
        "\n".join(["these are not checkpoints of one model:", *lines]),
        hint="leave the odd checkpoints out, or the odd tensors with --exclude",
    )


def _differences(tensors: Chosen, reference: Chosen, name: str, last_name: str) -> Iterator[str]:
    for one, other, here, there in (
        (reference, tensors, last_name, name),
        (tensors, reference, name, last_name),
    ):
        missing = [quoted(tensor) for tensor in one if tensor not in other]
        if missing:
            yield f"{plural(len(missing), 'tensor')} of {here} not in {there}: {shortlist(missing, most=3)}"
    for tensor, (_, layout) in tensors.items():
        if tensor not in reference:
            continue
        expected = reference[tensor][1]
        if layout.shape != expected.shape:
            yield f"{quoted(tensor)}: shape {layout.shape} in {name}, {expected.shape} in {last_name}"
        elif (
            layout.dtype is not expected.dtype
            and Kind.FLOAT
            not in (
                layout.dtype.kind,
                expected.dtype.kind,
            )
        ) or layout.dtype.kind is not expected.dtype.kind:
            yield f"{quoted(tensor)}: {layout.dtype.torch_name} in {name}, {expected.dtype.torch_name} in {last_name}"
