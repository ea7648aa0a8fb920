"""Tensors that are views of the same bytes of a storage: tied weights if their types are equal, else refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ema_cli.errors import InputRefused
from ema_cli.formats.torch.declared_storages import ONE_TYPE
from ema_cli.storage.extents import TensorLayout, span
from ema_cli.text import quoted

View = tuple[int, TensorLayout]
"""The byte of a storage where a tensor begins, and the tensor."""


def refuse_shared_bytes(views: Iterable[tuple[str, int, TensorLayout]]) -> None:
    """Refuse tensors of different types in the same bytes.

    torch saves such views if all their types are new, such as float8, or one is of bytes: their storage is untyped. But
    their averages would not be views of the same bytes.

    Args:
        views: of each tensor the key of its storage, the byte of it where the tensor begins, and the tensor.

    Raises:
        InputRefused: two tensors of different types share bytes.

    """
    by_storage: dict[str, list[View]] = defaultdict(list)
    for key, begin, layout in views:
        by_storage[key].append((begin, layout))
    for key, found in by_storage.items():
        if len({layout.dtype.name for _, layout in found}) > 1:
            _refuse_overlap(key, sorted(found, key=lambda view: view[0]))


def _refuse_overlap(key: str, views: list[View]) -> None:
    """Go through the views of one storage by where they begin; know the one of each type that ends last."""
    last: dict[str, View] = {}
    for view in views:
        begin, layout = view
        for name, other in last.items():
            if name != layout.dtype.name and begin < _end(other) and layout.nbytes:
                raise InputRefused(
                    f"holds {_named(other)} and {_named(view)} in the same bytes of storage {quoted(key)}",
                    hint=ONE_TYPE,
                )
        known = last.get(layout.dtype.name)
        if known is None or _end(known) < _end(view):
            last[layout.dtype.name] = view


def _end(view: View) -> int:
    """Return the byte of the storage after the last element."""
    begin, layout = view
    if layout.strides is None:
        return begin + layout.nbytes
    return begin + span(layout.shape, layout.strides) * layout.dtype.itemsize


def _named(view: View) -> str:
    return f"{quoted(view[1].name)} ({view[1].dtype.torch_name})"
