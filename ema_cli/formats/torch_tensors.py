"""Place the tensors of a state dict in the records of a torch file, with every declaration checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.structure import writable_name
from ema_cli.formats.torch_objects import UnsupportedTensor, place
from ema_cli.formats.tree import Tensor
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import quoted, shortlist

Record = Callable[[str], tuple[int, int]]
"""Gives the byte offset and the size of the storage that a file holds under a key."""


def place_all(tensors: Mapping[str, Tensor], record: Record) -> tuple[tuple[TensorLayout, ...], tuple[int, ...]]:
    """Return the layouts of ``tensors`` and the byte offsets of their first elements.

    Raises:
        InputRefused: a tensor cannot be read, or does not lie inside its record. All of them are named.

    """
    records: dict[str, tuple[int, int]] = {}
    layouts: list[TensorLayout] = []
    offsets: list[int] = []
    faults: list[str] = []
    for name, tensor in tensors.items():
        try:
            layout, offset = _place_one(name, tensor, record, records)
        except InputRefused as refused:
            if refused.hint:
                raise
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            offsets.append(offset)
    if faults:
        raise InputRefused(shortlist(faults), hint="leave tensors out of the checkpoint, or save them dense")
    return tuple(layouts), tuple(offsets)


def _place_one(
    name: str, tensor: Tensor, record: Record, records: dict[str, tuple[int, int]]
) -> tuple[TensorLayout, int]:
    if isinstance(tensor, UnsupportedTensor):
        raise InputRefused(f"is a {tensor.kind} tensor, which has no plain data")
    if not writable_name(name):
        raise InputRefused("has a name that cannot be written")
    key = tensor.storage.key
    if key not in records:
        records[key] = record(key)
    start, size = records[key]
    layout, offset = place(name, tensor, size)
    return layout, start + offset
