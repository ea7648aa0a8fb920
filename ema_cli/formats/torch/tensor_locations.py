"""Place the tensors of a state dict in the records of a torch file, with every declaration checked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Tensor
from ema_cli.formats.structure import UnreadableTensor, writable_name
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor, place
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.text import quoted, shortlist

Record = Callable[[str], tuple[int, int]]
"""Gives the byte offset and the size of the storage that a file holds under a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the tensors of a state dict lie in a file."""

    layouts: tuple[TensorLayout, ...]
    offsets: tuple[int, ...]
    """Byte offsets of their first elements."""
    unreadable: tuple[tuple[str, str], ...]
    """Those that have no plain numbers, by name, each with the reason."""


def place_all(tensors: Mapping[str, Tensor], record: Record, pool: LayoutPool, origin: Hashable) -> Placed:
    """Return the layouts of ``tensors`` and where their first elements lie.

    Args:
        tensors: as the pickle declares them.
        record: where the storages lie in this file.
        pool: remembers the layouts of equal declarations over records of equal sizes.
        origin: equal for equal ``tensors``.

    Raises:
        InputRefused: a tensor does not lie inside its record, or its name cannot be written. All of them are named.

    """
    keys = dict.fromkeys(tensor.storage.key for tensor in tensors.values() if isinstance(tensor, TensorRef))
    records = {key: record(key) for key in keys}
    sizes = tuple(size for _, size in records.values())
    inside = pool.remember(("place", origin, sizes), lambda: _place_inside(tensors, records))
    return Placed(
        layouts=inside.layouts,
        offsets=tuple(records[key][0] + offset for key, offset in inside.places),
        unreadable=inside.unreadable,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """The same, whatever the file: what is remembered."""

    layouts: tuple[TensorLayout, ...]
    places: tuple[tuple[str, int], ...]
    """For each tensor the key of its storage and the byte offset inside that."""
    unreadable: tuple[tuple[str, str], ...]


def _place_inside(tensors: Mapping[str, Tensor], records: Mapping[str, tuple[int, int]]) -> _Inside:
    layouts: list[TensorLayout] = []
    places: list[tuple[str, int]] = []
    unreadable: list[tuple[str, str]] = []
    faults: list[str] = []
    for name, tensor in tensors.items():
        try:
            if not writable_name(name):
                raise InputRefused("has a name that cannot be written")
            if isinstance(tensor, UnsupportedTensor):
                raise UnreadableTensor(f"is a {tensor.kind} tensor, {tensor.why}")
            layout, offset = place(name, tensor, records[tensor.storage.key][1])
        except UnreadableTensor as reason:
            unreadable.append((name, reason.message))
        except InputRefused as refused:
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            places.append((tensor.storage.key, offset))
    if faults:
        raise InputRefused(shortlist(faults))
    return _Inside(layouts=tuple(layouts), places=tuple(places), unreadable=tuple(unreadable))
