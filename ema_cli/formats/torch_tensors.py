"""Place the tensors of a state dict in the records of a torch file, with every declaration checked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.structure import writable_name
from ema_cli.formats.torch_objects import TensorRef, UnsupportedTensor, place
from ema_cli.formats.tree import Tensor
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.text import quoted, shortlist

Record = Callable[[str], tuple[int, int]]
"""Gives the byte offset and the size of the storage that a file holds under a key."""


def place_all(
    tensors: Mapping[str, Tensor], record: Record, pool: LayoutPool, origin: Hashable
) -> tuple[tuple[TensorLayout, ...], tuple[int, ...]]:
    """Return the layouts of ``tensors`` and the byte offsets of their first elements.

    Args:
        tensors: as the pickle declares them.
        record: where the storages lie in this file.
        pool: remembers the layouts of equal declarations over records of equal sizes.
        origin: equal for equal ``tensors``.

    Raises:
        InputRefused: a tensor cannot be read, or does not lie inside its record. All of them are named.

    """
    keys = dict.fromkeys(tensor.storage.key for tensor in tensors.values() if isinstance(tensor, TensorRef))
    records = {key: record(key) for key in keys}
    sizes = tuple(size for _, size in records.values())
    layouts, inside = pool.remember(("place", origin, sizes), lambda: _place_inside(tensors, records))
    return layouts, tuple(records[key][0] + offset for key, offset in inside)


def _place_inside(
    tensors: Mapping[str, Tensor], records: Mapping[str, tuple[int, int]]
) -> tuple[tuple[TensorLayout, ...], tuple[tuple[str, int], ...]]:
    """Return the layouts, and for each tensor the key of its storage and the byte offset inside it."""
    layouts: list[TensorLayout] = []
    inside: list[tuple[str, int]] = []
    faults: list[str] = []
    for name, tensor in tensors.items():
        try:
            if isinstance(tensor, UnsupportedTensor):
                raise InputRefused(f"is a {tensor.kind} tensor, which has no plain data")
            if not writable_name(name):
                raise InputRefused("has a name that cannot be written")
            layout, offset = place(name, tensor, records[tensor.storage.key][1])
        except InputRefused as refused:
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            inside.append((tensor.storage.key, offset))
    if faults:
        raise InputRefused(shortlist(faults), hint="leave tensors out of the checkpoint, or save them dense")
    return tuple(layouts), tuple(inside)
