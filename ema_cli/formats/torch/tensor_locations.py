"""Locate the tensors of a state dict in the storages of a torch file, and check every declared number."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Mapping

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Tensor
from ema_cli.formats.structure import UnreadableTensor, are_sizes, writable_name
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.formats.torch.shared_bytes import refuse_shared_bytes
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool, TensorLayout, normal_strides, span
from ema_cli.text import quoted, shortlist

FindStorage = Callable[[str], tuple[int, int]]
"""Returns the byte offset in the file and the size of the storage with a given key."""

_EXPANDED_BYTES = 1 << 26
"""An expanded tensor (stride 0) may be larger than its storage up to this size."""


@record
class LocatedTensors:
    """The tensors of a state dict with their offsets in a file."""

    layouts: tuple[TensorLayout, ...]
    offsets: array[int]
    """Byte offsets of their first elements."""
    unreadable: tuple[tuple[str, str], ...]
    """Tensors that are not plain numbers: name and reason."""


@record
class _TensorsInStorages:
    """The tensors with their offsets in the storages, which are the same in every file of equal declarations."""

    layouts: tuple[TensorLayout, ...]
    offsets: tuple[tuple[str, int], ...]
    """For each tensor the key of its storage, and the byte offset inside that."""
    unreadable: tuple[tuple[str, str], ...]


def locate_tensors(
    tensors: Mapping[str, Tensor], find_storage: FindStorage, pool: LayoutPool, origin: Hashable
) -> LocatedTensors:
    """Return the layouts of ``tensors`` and the offsets of their first elements.

    Args:
        tensors: as the pickle declares them.
        find_storage: locates the storages in this file.
        pool: remembers the result for equal declarations over storages of equal sizes.
        origin: equal for equal ``tensors``.

    Raises:
        InputRefused: tensors exceed their storages, or have names that cannot be written; all of them are named.

    """
    keys = dict.fromkeys(tensor.storage.key for tensor in tensors.values() if isinstance(tensor, TensorRef))
    storages = {key: find_storage(key) for key in keys}
    sizes = {key: size for key, (_, size) in storages.items()}
    found = pool.remember(("place", origin, tuple(sizes.values())), lambda: _in_storages(tensors, sizes))
    return LocatedTensors(
        layouts=found.layouts,
        offsets=array("q", [storages[key][0] + offset for key, offset in found.offsets]),
        unreadable=found.unreadable,
    )


def _in_storages(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> _TensorsInStorages:
    layouts: list[TensorLayout] = []
    offsets: list[tuple[str, int]] = []
    unreadable: list[tuple[str, str]] = []
    faults: list[str] = []
    for name, tensor in tensors.items():
        try:
            if not writable_name(name):
                raise InputRefused("has a name that cannot be written")
            if isinstance(tensor, UnsupportedTensor):
                raise UnreadableTensor(f"is a {tensor.kind} tensor, {tensor.why}")
            layout, offset = locate_tensor(name, tensor, sizes[tensor.storage.key])
        except UnreadableTensor as reason:
            unreadable.append((name, reason.message))
        except InputRefused as refused:
            faults.append(f"tensor {quoted(name)} {refused.message}")
        else:
            layouts.append(layout)
            offsets.append((tensor.storage.key, offset))
    if faults:
        raise InputRefused(shortlist(faults))
    refuse_shared_bytes((key, offset, layout) for layout, (key, offset) in zip(layouts, offsets, strict=True))
    return _TensorsInStorages(layouts=tuple(layouts), offsets=tuple(offsets), unreadable=tuple(unreadable))


def locate_tensor(name: str, tensor: TensorRef, storage_bytes: int) -> tuple[TensorLayout, int]:
    """Return the layout of ``tensor``, and its byte offset in its storage of ``storage_bytes`` bytes.

    Every number is checked, in Python integers, against the bytes in the file.

    Raises:
        UnreadableTensor: it is not plain numbers of a supported type.
        InputRefused: the declaration does not fit the storage.

    """
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    if dtype is None:
        raise UnreadableTensor(
            f"has the element type {quoted(tensor.dtype_name)}, which cannot be averaged and written"
        )
    if tensor.flags:
        raise UnreadableTensor(f"is a lazy view ({tensor.flags}); save it with .resolve_conj().resolve_neg()")
    if len(tensor.shape) != len(tensor.strides) or not are_sizes((tensor.offset, *tensor.shape, *tensor.strides)):
        raise InputRefused("has a damaged shape")
    offset = 0 if 0 in tensor.shape else tensor.offset  # an empty view may begin anywhere
    reach = offset + span(tensor.shape, tensor.strides)
    if reach * dtype.itemsize > storage_bytes:
        raise InputRefused(f"reaches beyond its storage of {storage_bytes:,} bytes")
    layout = TensorLayout(
        name=name, dtype=dtype, shape=tensor.shape, strides=normal_strides(tensor.shape, tensor.strides)
    )
    if layout.nbytes > max(storage_bytes, _EXPANDED_BYTES):
        raise UnreadableTensor(f"is expanded to {layout.nbytes:,} bytes from {storage_bytes:,}")
    return layout, offset * dtype.itemsize
