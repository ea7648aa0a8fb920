"""Folders with files of two ranks whose pickles lie about the parts of a tensor that they hold."""

from __future__ import annotations

from collections.abc import Mapping

from tests.hostile.cases import OK, REFUSED, Case
from tests.hostile.folder_cases import Contents, folder_of
from tests.hostile.opcodes import SHELL, call, glob, mapping, num, numbers, stop, tensor, text, tup
from tests.hostile.pickle_cases import laughs
from tests.hostile.zips import checkpoint

_TENSOR = "torch.distributed.tensor"
_SHARD = "torch.distributed._shard"
_FLOAT = glob("torch", "float32")
RANK_NAMES = ("rank_0.pt", "rank_1.pt")


def _object(module: str, name: str, state: bytes) -> bytes:
    """Push an object with its state."""
    return glob(module, name) + b")\x81" + state + b"b"


def _wrapped(kind: bytes, shape: bytes, state: bytes, dtype: bytes = _FLOAT) -> bytes:
    """Push a tensor subclass of the whole ``shape`` as torch pickles it."""
    inner = tup(kind, dtype, shape, numbers((1,)), num(0), b"N", b"N", b"\x89")
    rebuild = glob("torch._utils", "_rebuild_wrapper_subclass")
    return call(glob("torch._tensor", "_rebuild_from_type_v2"), rebuild, kind, inner, state)


def axis(shape: bytes = numbers((2,))) -> bytes:
    """Push a dimension of a mesh as torch pickles it since 2.12."""
    return _object("torch.distributed._mesh_layout", "_FlatLayout", mapping(shape=shape, stride=numbers((1,))))


def mesh(coordinate: bytes, axes: bytes | None = None) -> bytes:
    """Push a mesh of ranks."""
    layout = mapping(axes=tup(axis()) if axes is None else axes)
    layout = _object("torch.distributed._mesh_layout", "_MeshLayout", layout)
    state = mapping(_layout=layout, _coordinate_on_dim=coordinate)
    return _object("torch.distributed.device_mesh", "DeviceMesh", state)


def shard(name: str = "Shard", **fields: bytes) -> bytes:
    """Push a placement."""
    return _object(f"{_TENSOR}.placement_types", name, mapping(**({"dim": num(0)} | fields)))


def dtensor(
    rank: int,
    *,
    local: bytes | None = None,
    shape: bytes = numbers((8,)),
    on: bytes | None = None,
    placements: bytes | None = None,
    dtype: bytes = _FLOAT,
    **more: bytes,
) -> bytes:
    """Push this rank's half of a tensor of eight elements, however wrong."""
    on = mesh(numbers((rank,))) if on is None else on
    placements = tup(shard()) if placements is None else placements
    spec = _object(f"{_TENSOR}._dtensor_spec", "DTensorSpec", mapping(mesh=on, placements=placements, **more))
    state = tup(b"N", mapping(_local_tensor=tensor() if local is None else local, _spec=spec))
    return _wrapped(glob(_TENSOR, "DTensor"), shape, state, dtype)


def sharded(
    origin: bytes, *, sizes: bytes = numbers((4,)), shape: bytes = numbers((8,)), shards: bytes | None = None
) -> bytes:
    """Push a ``ShardedTensor`` with one shard of four elements."""
    place = _object(f"{_SHARD}.metadata", "ShardMetadata", mapping(shard_offsets=origin, shard_sizes=sizes))
    one = _object(f"{_SHARD}.sharded_tensor.shard", "Shard", mapping(tensor=tensor(), metadata=place))
    listed = b"](" + one + b"e" if shards is None else shards
    return _wrapped(glob(f"{_SHARD}.sharded_tensor.api", "ShardedTensor"), shape, tup(listed, b"N", b"N"))


def of_ranks(first: bytes, second: bytes, **more: bytes) -> Contents:
    """Return the files of two ranks with a tensor each."""
    files = {name: checkpoint(pickle=stop(mapping(w=w))) for name, w in zip(RANK_NAMES, (first, second), strict=True)}
    return {**files, **more}


def _lies(**lies: bytes) -> Contents:
    """Return two ranks of which the second lies."""
    return of_ranks(dtensor(0), dtensor(1, **lies))


_BIG = numbers((1 << 61, 1 << 61))
_BAD: Mapping[str, tuple[Contents, str]] = {
    "missing half": (of_ranks(dtensor(0), dtensor(0)), "incomplete"),
    "coordinate outside": (_lies(on=mesh(numbers((2,)))), "damaged placement"),
    "negative coordinate": (_lies(on=mesh(numbers((-1,)))), "damaged placement"),
    "giant coordinate": (_lies(on=mesh(numbers((1 << 70,)))), "damaged placement"),
    "coordinate of text": (_lies(on=mesh(text("1"))), "damaged placement"),
    "coordinates of a list that is too long": (_lies(on=mesh(numbers([0] * 200))), "damaged placement"),
    "laughing coordinate": (_lies(on=mesh(laughs(60))), "damaged placement"),
    "no mesh": (_lies(on=b"N"), "damaged placement"),
    "mesh of nothing": (_lies(on=mesh(numbers((1,)), tup())), "damaged placement"),
    "mesh of zero": (_lies(on=mesh(numbers((0,)), tup(axis(numbers((0,)))))), "damaged placement"),
    "mesh of giants": (_lies(on=mesh(numbers((1,)), tup(axis(_BIG)))), ""),
    "mesh that laughs": (_lies(on=mesh(numbers((1,)), laughs(60))), ""),
    "other mesh": (_lies(on=mesh(numbers((1,)), tup(axis(numbers((4,)))))), "its placement says"),
    "no placements": (_lies(placements=tup()), "damaged placement"),
    "placements of text": (_lies(placements=text("\x1b[31mShard")), "no placements"),
    "placement of the shell": (_lies(placements=tup(call(SHELL, text("touch canary")))), "placement"),
    "other placement": (_lies(placements=tup(shard("\x1b[31mOther"))), "placement"),
    "summand": (_lies(placements=tup(shard("Partial"))), "summand"),
    "dimension outside": (_lies(placements=tup(shard(dim=num(1)))), "along a dimension"),
    "negative dimension": (_lies(placements=tup(shard(dim=num(-1)))), "damaged placement"),
    "dimension of None": (_lies(placements=tup(shard(dim=b"N"))), "damaged placement"),
    "split by billions": (
        _lies(placements=tup(shard("_StridedShard", split_factor=num(1 << 40)))),
        "pieces on one rank",
    ),
    "split by nothing": (_lies(placements=tup(shard("_StridedShard", split_factor=num(0)))), "damaged placement"),
    "split by no number": (_lies(placements=tup(shard("_StridedShard"))), "damaged placement"),
    "damaged order": (_lies(shard_order=tup(tup(num(0), numbers((5,))))), "order of shards"),
    "order of numbers": (_lies(shard_order=numbers((0,))), "order of shards"),
    "local of other shape": (_lies(local=tensor(shape=(2,))), "its placement says"),
    "local of other type": (_lies(dtype=glob("torch", "float16")), "another type"),
    "local beyond its storage": (_lies(local=tensor(offset=2)), "beyond its storage"),
    "local without strides": (_lies(local=tensor(strides=())), ""),
    "local is text": (_lies(local=text("w")), "distributed"),
    "whole of other shape": (_lies(shape=numbers((9,))), ""),
    "whole of giants": (of_ranks(*(dtensor(rank, shape=_BIG) for rank in (0, 1))), ""),
    "whole of text": (_lies(shape=text("8")), ""),
    "element type of the shell": (_lies(dtype=SHELL), ""),
    "plain on one rank": (of_ranks(dtensor(0), tensor(shape=(4,))), "on an earlier one"),
    "overlap": (of_ranks(sharded(numbers((0,))), sharded(numbers((2,)))), "overlap"),
    "gap": (of_ranks(*(sharded(numbers((4 * rank,)), shape=numbers((9,))) for rank in (0, 1))), "incomplete"),
    "overlap of the right size": (
        of_ranks(sharded(numbers((0,)), shape=numbers((6,))), sharded(numbers((2,)), shape=numbers((6,)))),
        "overlap",
    ),
    "shard outside": (of_ranks(sharded(numbers((0,))), sharded(numbers((5,)))), "outside its shape"),
    "negative origin": (of_ranks(sharded(numbers((0,))), sharded(numbers((-4,)))), "damaged placement"),
    "giant origin": (of_ranks(sharded(numbers((0,))), sharded(numbers(((1 << 62) - 1,)))), "outside its shape"),
    "overflowing origin": (of_ranks(sharded(numbers((0,))), sharded(numbers((1 << 80,)))), "damaged placement"),
    "origin of two dimensions": (of_ranks(sharded(numbers((0,))), sharded(numbers((0, 4)))), "shard of shape"),
    "other sizes": (of_ranks(sharded(numbers((0,))), sharded(numbers((4,)), sizes=numbers((5,)))), "shard of shape"),
    "shards of text": (of_ranks(sharded(numbers((0,))), sharded(numbers((4,)), shards=text("s"))), "no list of shards"),
    "shard of nothing": (of_ranks(sharded(numbers((0,))), sharded(numbers((4,)), shards=b"](Ne")), "damaged placement"),
    "list that contains itself": (
        of_ranks(sharded(numbers((0,))), sharded(numbers((4,)), shards=b"]q\x07(h\x07e")),
        "damaged placement",
    ),
    "flat parameter": (
        {
            name: checkpoint(pickle=stop(mapping(_flat_param=sharded(numbers((4 * rank,))))))
            for rank, name in enumerate(RANK_NAMES)
        },
        "flat parameters",
    ),
    "plain halves": (of_ranks(tensor(), tensor(shape=(3,))), "do not state how they fit together"),
    "one rank is text": ({**of_ranks(dtensor(0), dtensor(1)), RANK_NAMES[1]: b"404"}, "zip archive"),
    "one rank is cut": (
        {**of_ranks(dtensor(0), dtensor(1)), RANK_NAMES[1]: checkpoint(pickle=stop(mapping(w=dtensor(1))))[:-9]},
        "truncated",
    ),
    "one rank is empty": ({**of_ranks(dtensor(0), dtensor(1)), RANK_NAMES[1]: b""}, "zip archive"),
}
_GOOD: Mapping[str, tuple[Contents, str]] = {
    "dtensor": (of_ranks(dtensor(0), dtensor(1)), ""),
    "sharded": (of_ranks(sharded(numbers((0,))), sharded(numbers((4,)))), ""),
    "copies": (of_ranks(tensor(), tensor()), ""),
    "a rank outside of the mesh": (
        of_ranks(
            dtensor(0, on=mesh(numbers((0,)), tup(axis(numbers((1,))))), shape=numbers((4,))),
            dtensor(0, on=mesh(b"N"), local=tensor(shape=(0,)), shape=numbers((4,))),
        ),
        "",
    ),
}


def rank_cases() -> list[Case]:
    """Return the folders."""
    return [
        Case(name=f"{group}_{name.replace(' ', '_')}", make=folder_of(contents), code=code, word=word)
        for group, table, code in (("ranks", _BAD, REFUSED), ("good_ranks", _GOOD, OK))
        for name, (contents, word) in table.items()
    ]
