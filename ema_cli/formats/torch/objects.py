"""The objects in a pickle of ``torch.save``, as plain records: storages, tensors, and tensors of unsupported kinds.

A call of one of torch's rebuild functions is recognized by its name, and becomes a record of its arguments; nothing
is rebuilt.
Source of the argument lists: ``torch/_utils.py`` and ``torch/_tensor.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import field, replace
from typing import TypeGuard

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.formats.inert_pickle.values import Global, Inert, PickleError
from ema_cli.formats.structure import MOST_DIMENSIONS, ONE_SHARD, QUANTIZE_LATER
from ema_cli.formats.torch.storages import StorageRef, storage_dtype_name
from ema_cli.record import record
from ema_cli.text import safe_text

_QUANTIZED = f"and its codes cannot be averaged; {QUANTIZE_LATER}"
_SPARSE = "which has no plain data; save it with .to_dense()"
_NESTED = "which has no plain data; save its parts, tensor.unbind(), under names of their own"
_META = "which has no values; save the checkpoint when the weights are loaded or gathered, not on the meta device"
_DEVICE = "whose data are in the pickle; save it with xm.save, or model.cpu().state_dict()"
_LAZY = "which has no values yet; save the model after its first forward pass"
_CODES = "quantized"
_MOST_FLAGS = 16


@record
class TensorRef:
    """A strided view of a storage, as declared; ``locate_tensor`` checks it against the storage."""

    storage: StorageRef
    dtype_name: str
    """The torch name."""
    offset: int
    """Elements from the start of the storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    flags: str = ""
    """Lazy operations that torch would apply on access (``conj``, ``neg``)."""
    requires_grad: bool = field(default=False, compare=False)
    """Whether it was saved as a tensor that is trained; a state dict has detached tensors."""


@record
class UnsupportedTensor:
    """A tensor without plain strided data: sparse, quantized, meta, a shard."""

    kind: str
    why: str = "which has no plain data"
    """Why it cannot be averaged, and what to do about it."""

    @property
    def is_quantized(self) -> bool:
        """Whether it consists of codes."""
        return self.kind == _CODES


def attributes_of(value: object) -> dict[object, object]:
    """Return the attributes of an object, or those in the state of one; empty if there are none."""
    state = value.state if isinstance(value, Inert) else value
    attributes = state[-1] if isinstance(state, tuple) and state else state
    return attributes if isinstance(attributes, dict) else {}


def reduce(kind: Global, args: tuple[object, ...]) -> object:
    """Return a record for a call in the pickle; see ``inert_pickle.values.Reduce``."""
    rebuild = _REBUILD.get(kind.name)
    if rebuild is not None and kind.module.partition(".")[0] in ("torch", "collections"):
        return rebuild(*args)
    if kind.module == "torch.fx.graph_module":
        return Inert(kind, args, state=next((part for part in args if isinstance(part, dict)), None))
    if kind.module == "torch._utils" and kind.name.startswith("_rebuild"):
        return UnsupportedTensor(kind=safe_text(kind.name))
    return Inert(kind, args)


def _tensor(storage: object, *view: object) -> object:
    """``_rebuild_tensor(storage, offset, shape, strides)``, v2 with ``(..., requires_grad, hooks, metadata)``."""
    if not isinstance(storage, StorageRef):
        return storage if isinstance(storage, UnsupportedTensor) else UnsupportedTensor(kind="wrapped")
    return _view(storage, storage_dtype_name(storage.kind), view[:4], view[5] if len(view) > 5 else None)  # noqa: PLR2004


def _tensor_v3(storage: object, *view: object) -> object:
    """``_rebuild_tensor_v3``: like v2, with the element type before the metadata; the storage counts bytes."""
    dtype = view[5]
    if not isinstance(storage, StorageRef) or not isinstance(dtype, Global):
        return UnsupportedTensor(kind="wrapped")
    return _view(storage, dtype.name, view[:4], view[6] if len(view) > 6 else None)  # noqa: PLR2004


def _view(storage: StorageRef, dtype_name: str, view: tuple[object, ...], metadata: object) -> TensorRef:
    offset, shape, strides, *more = view
    requires_grad = more[0] if more else False
    if not (isinstance(offset, int) and _are_sizes(shape) and _are_sizes(strides)):
        raise PickleError("a tensor has a damaged shape")
    flags = _flags(metadata) if isinstance(metadata, dict) and metadata else []
    return TensorRef(
        storage=storage,
        dtype_name=dtype_name,
        offset=offset,
        shape=shape,
        strides=strides,
        flags=", ".join(flags),
        requires_grad=requires_grad is True,
    )


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """Whether ``value`` is a short, flat tuple of integers: all tensors may share it, and it is compared."""
    return isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS and all(type(size) is int for size in value)


def _flags(metadata: dict[object, object]) -> list[str]:
    if len(metadata) > _MOST_FLAGS:
        raise PickleError("a tensor has damaged metadata")
    return [safe_text(flag) for flag, on in metadata.items() if on and isinstance(flag, str)]


def _parameter(tensor: object, requires_grad: object, *_: object) -> object:
    """``_rebuild_parameter(tensor, requires_grad, ...)``: a parameter is its tensor."""
    return replace(tensor, requires_grad=requires_grad is True) if isinstance(tensor, TensorRef) else tensor


def _from_cpu_tensor(tensor: object, dtype: object, *_: object) -> object:
    """``_rebuild_device_tensor_from_cpu_tensor(tensor, dtype, device, ...)``: of XLA and others, saved from the CPU."""
    same = isinstance(tensor, TensorRef) and isinstance(dtype, Global) and dtype.name == tensor.dtype_name
    return tensor if same else UnsupportedTensor(kind="device (XLA)", why=_DEVICE)


def _from_type(function: object, _type: object, args: object, state: object = None, *_: object) -> object:
    """``_rebuild_from_type_v2(function, type, args, state)``: a subclass, or a tensor with attributes."""
    if not isinstance(function, Global) or not isinstance(args, tuple) or len(args) > MOST_DIMENSIONS:
        return UnsupportedTensor(kind="subclass")
    if function.name == "_rebuild_wrapper_subclass":
        return _whole_local(args, state)
    if function.name == "_rebuild_from_type_v2":  # which could contain itself
        return UnsupportedTensor(kind="subclass")
    made = reduce(function, args)
    return made if isinstance(made, TensorRef | UnsupportedTensor) else UnsupportedTensor(kind="wrapped")


def _whole_local(args: tuple[object, ...], state: object) -> object:
    """Return the local part of a distributed tensor, if that is all of it.

    ``args`` are ``(class, dtype, shape, ...)``. A local part of the same shape may be one summand of several
    (``Partial``).
    """
    attributes = attributes_of(state)
    kind = args[0] if args else None
    if isinstance(kind, Global) and kind.name == "ShardedTensor":
        return UnsupportedTensor(kind="distributed", why=ONE_SHARD)
    if "_local_tensor" not in attributes:
        return _in_parts(kind, attributes)
    local = attributes["_local_tensor"]
    if not isinstance(local, TensorRef):
        return UnsupportedTensor(kind="distributed")
    if len(args) > 2 and local.shape == args[2] and not _is_summand(attributes.get("_spec")):  # noqa: PLR2004
        return local
    return UnsupportedTensor(kind="distributed", why=ONE_SHARD)


def _in_parts(kind: object, attributes: object) -> UnsupportedTensor:
    """Return the record of a tensor subclass that keeps its data in other tensors; with integers, they are codes."""
    name = f"of the class {safe_text(str(kind))}, " if isinstance(kind, Global) else ""
    values = list(attributes.values())[:MOST_DIMENSIONS] if isinstance(attributes, dict) else []
    inside = [value for value in values if isinstance(value, TensorRef | UnsupportedTensor)]
    if any(_is_of_codes(tensor) for tensor in inside):
        return UnsupportedTensor(kind=_CODES, why=f"{name}{_QUANTIZED}")
    return UnsupportedTensor(kind="wrapped", why=f"{name}which has no plain data; save plain tensors")


def _is_of_codes(tensor: TensorRef | UnsupportedTensor) -> bool:
    """Whether a part of a tensor is a matrix of integers or of eight-bit floats, or quantized itself."""
    if isinstance(tensor, UnsupportedTensor):
        return tensor.is_quantized
    dtype = BY_TORCH_NAME.get(tensor.dtype_name)
    return dtype is None or (len(tensor.shape) > 1 and dtype.may_be_codes)


def _is_summand(spec: object) -> bool:
    """Whether one of the placements of a ``DTensorSpec`` is ``Partial``."""
    placements = attributes_of(spec).get("placements") if isinstance(spec, Inert) else None
    made = placements[:MOST_DIMENSIONS] if isinstance(placements, tuple) else ()
    kinds = [one.kind for one in made if isinstance(one, Inert)]
    return any(isinstance(kind, Global) and kind.name in ("Partial", "_Partial") for kind in kinds)


def _unsupported(kind: str, why: str = "which has no plain data") -> Callable[..., object]:
    return lambda *_: UnsupportedTensor(kind=kind, why=why)


def _mapping(*args: object) -> object:
    """``OrderedDict``: its items follow in the pickle, or are a list of pairs (protocols 0 and 1)."""
    made: dict[object, object] = {}
    if args and isinstance(args[0], list):
        for pair in args[0]:
            if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):  # noqa: PLR2004
                made[pair[0]] = pair[1]
    return made


def _size(*args: object) -> object:
    """``torch.Size`` is a tuple."""
    sizes = args[0] if args and isinstance(args[0], list | tuple) else ()
    if len(sizes) > MOST_DIMENSIONS:
        raise PickleError("a tensor has a damaged shape")
    return tuple(sizes)


_REBUILD: dict[str, Callable[..., object]] = {
    OrderedDict.__name__: _mapping,
    "Size": _size,
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_from_type_v2": _from_type,
    "_rebuild_sparse_tensor": _unsupported("sparse", _SPARSE),
    "_rebuild_sparse_csr_tensor": _unsupported("sparse", _SPARSE),
    "_rebuild_nested_tensor": _unsupported("nested", _NESTED),
    "_rebuild_qtensor": _unsupported(_CODES, _QUANTIZED),
    "_rebuild_meta_tensor_no_storage": _unsupported("meta", _META),
    "_rebuild_xla_tensor": _unsupported("device (XLA)", _DEVICE),
    "_rebuild_device_tensor_from_numpy": _unsupported("device (XLA)", _DEVICE),
    "_rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "_rebuild_wrapper_subclass": _unsupported("wrapped"),
    "UninitializedParameter": _unsupported("lazy, uninitialized", _LAZY),
    "UninitializedBuffer": _unsupported("lazy, uninitialized", _LAZY),
}
