"""The tensors in the pickle of one rank: whole tensors, of each the rectangles that this rank holds.

Input -> output: a call in the pickle -> a ``RankTensor`` for a ``DTensor`` or a ``ShardedTensor``. Both state in the
pickle where the part of the rank belongs: a ``DTensor`` by the shape of its mesh, the place of the rank in it, and a
placement for each dimension of the mesh; a ``ShardedTensor`` by the origin and the shape of every shard.
Sources: ``torch/distributed/tensor/_dtensor_spec.py``, ``torch/distributed/device_mesh.py``,
``torch/distributed/_shard/sharded_tensor/api.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeGuard

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.structure import MOST_DIMENSIONS, are_sizes
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor, attributes_of, reduce
from ema_cli.formats.torch.storages import StorageRef
from ema_cli.formats.torch_ranks.mesh_shards import AxisPlacement, Sharding, rectangles_of
from ema_cli.record import record
from ema_cli.text import safe_text

Sizes = tuple[int, ...]
_MOST_SHARDS = 1024
"""Of one tensor on one rank."""
_NOWHERE = StorageRef(key="", kind="", elements=0)
_DTENSOR = "DTensor"
_KINDS = (_DTENSOR, "ShardedTensor")


@record
class LocalPart:
    """A rectangle of a tensor that a rank holds."""

    origin: Sizes
    """Index in the whole tensor of its first element."""
    view: TensorRef
    """The rectangle in its storage."""


@record
class RankTensor(TensorRef):
    """A whole tensor, of which a rank holds some rectangles; it has no storage of its own."""

    parts: tuple[LocalPart, ...] = ()


def reduce_of_rank(kind: Global, args: tuple[object, ...]) -> object:
    """Return a record for a call in the pickle of one rank; see ``inert_pickle.values.Reduce``."""
    match args:
        case (Global(name="_rebuild_wrapper_subclass"), _, tuple(inner), state) if kind.name == "_rebuild_from_type_v2":
            name = inner[0].name if inner and isinstance(inner[0], Global) else ""
            if name in _KINDS:
                return _rank_tensor(name, inner, state)
    return reduce(kind, args)


def _rank_tensor(name: str, inner: tuple[object, ...], state: object) -> RankTensor | UnsupportedTensor:
    """Return the tensor that a rank holds a part of; of one that cannot be put together, the reason.

    ``inner`` is ``(class, element type, shape, ...)``.
    """
    try:
        _, dtype, shape, *_ = inner
        if not (isinstance(dtype, Global) and _are_sizes(shape)):
            raise InputRefused("is declared in an unknown way")
        parts = _parts_of_dtensor(shape, attributes_of(state)) if name == _DTENSOR else _parts_of_sharded(shape, state)
        if any(part.view.dtype_name != dtype.name for part in parts):
            raise InputRefused("has a part of another type than the whole")
    except (InputRefused, ValueError) as refused:
        reason = refused.message if isinstance(refused, InputRefused) else "is declared in an unknown way"
        return UnsupportedTensor(kind="distributed", why=f"and cannot be put together: it {reason}")
    return RankTensor(storage=_NOWHERE, dtype_name=dtype.name, offset=0, shape=shape, strides=(), parts=parts)


def _parts_of_dtensor(shape: Sizes, attributes: dict[object, object]) -> tuple[LocalPart, ...]:
    """Return the part of a ``DTensor`` on this rank: one rectangle, or several if the placement is strided."""
    local, spec = attributes.get("_local_tensor"), attributes_of(attributes.get("_spec"))
    mesh = attributes_of(spec.get("mesh"))
    coordinate = mesh.get("_coordinate_on_dim")
    if not isinstance(local, TensorRef):
        raise InputRefused("has a local part that is not a plain tensor")
    if coordinate is None and mesh:
        return ()  # the rank is not in the mesh
    places = tuple(coordinate) if isinstance(coordinate, list | tuple) and len(coordinate) <= MOST_DIMENSIONS else ()
    sharding = Sharding(
        mesh=_mesh_shape(mesh), coordinate=_sizes(places), placements=_placements(spec), order=_order(spec)
    )
    found = rectangles_of(shape, sharding)
    if found.local_shape != local.shape:
        raise InputRefused(f"has a part of shape {list(local.shape)}, but its placement says {list(found.local_shape)}")
    return tuple(
        LocalPart(origin=one.origin, view=_window(local, one.start, one.shape))
        for one in found.rectangles
        if 0 not in one.shape
    )


def _window(local: TensorRef, start: Sizes, shape: Sizes) -> TensorRef:
    """Return a rectangle of a local tensor."""
    if len(local.strides) != len(start):
        raise InputRefused("has a damaged shape")
    skipped = sum(index * stride for index, stride in zip(start, local.strides, strict=True))
    return replace(local, offset=local.offset + skipped, shape=shape)


def _mesh_shape(mesh: dict[object, object]) -> Sizes:
    """Return the shape of a mesh: of its tensor of ranks, or, in newer versions of torch, of its layout."""
    tensor = mesh.get("mesh", mesh.get("_mesh"))
    if isinstance(tensor, TensorRef):
        return tensor.shape
    layout = attributes_of(mesh.get("_layout"))
    axes = layout.get("axes")
    listed = axes if isinstance(axes, tuple) else layout.get("shape")
    listed = listed if isinstance(listed, tuple) else (listed,)
    if len(listed) > MOST_DIMENSIONS:
        raise InputRefused("has a mesh of too many dimensions")
    return tuple(_ranks_on(axis) for axis in listed)


def _ranks_on(axis: object) -> int:
    """Return the number of ranks along one dimension of a mesh."""
    shape = attributes_of(axis).get("shape") if isinstance(axis, Inert) else axis
    return math.prod(_sizes(shape if isinstance(shape, tuple) else (shape,)))


def _placements(spec: dict[object, object]) -> tuple[AxisPlacement, ...]:
    listed = spec.get("placements")
    if not isinstance(listed, list | tuple) or len(listed) > MOST_DIMENSIONS:
        raise InputRefused("has no placements")
    return tuple(map(_placement, listed))


def _placement(value: object) -> AxisPlacement:
    kind = value.kind if isinstance(value, Inert) else None
    name = kind.name if isinstance(kind, Global) else ""
    fields = attributes_of(value)
    args = value.args if isinstance(value, Inert) else ()
    if name == "Replicate":
        return AxisPlacement()
    if name not in ("Shard", "_StridedShard"):
        summand = name in ("Partial", "_Partial")
        raise InputRefused("is one summand of several" if summand else f"has the placement {safe_text(name)}")
    dim = fields.get("dim", args[0] if args else None)
    split = fields.get("split_factor", fields.get("sf", args[1] if len(args) > 1 else None)) if name != "Shard" else 1
    dim, split = _sizes((dim, split))
    return AxisPlacement(dim=dim, split_factor=split)


def _order(spec: dict[object, object]) -> dict[int, Sizes]:
    """Return the order in which the dimensions of the mesh split each dimension of the tensor, where it is stated."""
    listed = spec.get("shard_order")
    entries = listed if isinstance(listed, tuple) and len(listed) <= MOST_DIMENSIONS else ()
    order = {}
    for entry in entries:
        pair = entry.args if isinstance(entry, Inert) else entry
        if not isinstance(pair, tuple) or len(pair) != 2:  # noqa: PLR2004
            raise InputRefused("has a damaged order of shards")
        order[_sizes(pair[:1])[0]] = _sizes(pair[1])
    return order


def _parts_of_sharded(shape: Sizes, state: object) -> tuple[LocalPart, ...]:
    """Return the shards of a ``ShardedTensor`` on this rank: ``state`` is ``(local shards, metadata, ...)``."""
    shards = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(shards, list) or len(shards) > _MOST_SHARDS:
        raise InputRefused("has no list of shards")
    return tuple(part for shard in shards if 0 not in (part := _shard(shape, shard)).view.shape)


def _shard(shape: Sizes, shard: object) -> LocalPart:
    fields = attributes_of(shard)
    place, view = attributes_of(fields.get("metadata")), fields.get("tensor")
    origin, sizes = _sizes(place.get("shard_offsets")), _sizes(place.get("shard_sizes"))
    if not isinstance(view, TensorRef):
        raise InputRefused("has a local part that is not a plain tensor")
    if view.shape != sizes or len(origin) != len(shape):
        raise InputRefused(f"has a shard of shape {list(view.shape)}, but its metadata say {list(sizes)}")
    return LocalPart(origin=origin, view=view)


def _sizes(value: object) -> Sizes:
    numbers = tuple(value) if isinstance(value, list | tuple) and len(value) <= MOST_DIMENSIONS else (None,)
    if not are_sizes(numbers):
        raise InputRefused("has a damaged placement")
    return numbers


def _are_sizes(value: object) -> TypeGuard[Sizes]:
    return isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS and are_sizes(value)
