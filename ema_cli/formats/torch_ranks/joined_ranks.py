"""The tensors of all ranks of one checkpoint, joined: which rank has which rectangle of a tensor.

Input -> output: what each file declares -> ``JoinedRanks``, the layouts of the whole tensors and the place of each
rectangle. Every rectangle that is needed comes from the first rank that has it; equal rectangles of other ranks are
copies, which are compared when the files are read. The rectangles must tile the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ema_cli.dtypes import DType
from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.state_dict.find_weights import StateDict
from ema_cli.formats.state_dict.flat_parameters import AS_SHARDS, flat_parameters
from ema_cli.formats.state_dict.tree import Tensor
from ema_cli.formats.structure import MOST_TENSORS, UnreadableTensor, writable_name
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.formats.torch.storages import element_bytes
from ema_cli.formats.torch.tensor_locations import locate_tensor
from ema_cli.formats.torch_ranks.rank_objects import LocalPart, RankTensor
from ema_cli.record import record
from ema_cli.storage.extents import Part, TensorLayout, span
from ema_cli.text import quoted, safe_text, shortlist

MOST_PIECES = 1_000_000
"""In one checkpoint; each takes 700 bytes while the files are opened."""
_WHOLE_SAVE = "check that the folder holds the files of all ranks, and of a single save"
UNDEFINED = "is split over files of ranks that do not state how they fit together: "
"""Before the reason."""
JOIN_FIRST = (
    "join the parts first, with the tool of the trainer that wrote them (verl: python -m verl.model_merger merge); or "
    "save with torch.distributed.checkpoint"
)


class StoredPiece(NamedTuple):
    """The bytes of a piece in the file of one rank."""

    rank: int
    key: str
    """Of its storage."""
    storage_bytes: int
    """The size of that, as declared."""
    offset: int
    """Byte of the storage where the first element is."""
    nbytes: int
    """From there to the end of the last element."""


class Copy(NamedTuple):
    """A piece that a later rank has too."""

    name: str
    is_placed: bool
    """The files state that it is the same; otherwise it is a tensor that was saved without a placement."""
    dimensions: int
    first: StoredPiece
    other: StoredPiece


@record
class JoinedRanks:
    """The tensors of a checkpoint that ranks saved."""

    layouts: tuple[TensorLayout, ...]
    places: tuple[StoredPiece, ...]
    """Of every tensor, or of each of its parts."""
    copies: tuple[Copy, ...]
    unreadable: tuple[tuple[str, str], ...]
    has_placements: bool
    """Whether any tensor states where the parts of the ranks belong."""
    first: StateDict
    """Of the first rank."""
    root: object
    """The value of its pickle."""


class _RankRectangle(NamedTuple):
    """A rectangle of a tensor on one rank."""

    origin: tuple[int, ...]
    layout: TensorLayout
    place: StoredPiece


@dataclass(slots=True)
class _Whole:
    """A tensor with the pieces that were found so far."""

    shape: tuple[int, ...]
    dtype_name: str
    is_placed: bool
    pieces: dict[str, _RankRectangle] = field(default_factory=dict)
    """By origin and shape, as text: tuples of numbers can be made to collide."""


class RankJoiner:
    """Joins the tensors of the ranks, which are added in order."""

    def __init__(self) -> None:
        self._wholes: dict[str, _Whole] = {}
        self._unreadable: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._copies: list[Copy] = []
        self._pieces = 0

    def add(self, rank: int, tensors: dict[str, Tensor]) -> None:
        """Add the tensors of one rank.

        Raises:
            InputRefused: there are too many, or they are flat parameters.

        """
        flat = [quoted(name) for name in flat_parameters(tensors)]
        if flat:
            raise InputRefused(
                "holds flat parameters of FSDP (LOCAL_STATE_DICT), without the names and shapes of those in them: "
                f"{shortlist(flat)}",
                hint=AS_SHARDS,
            )
        for name, tensor in tensors.items():
            try:
                self._add(rank, name, tensor)
            except UnreadableTensor as reason:
                self._unreadable.setdefault(name, reason.message)
            except InputRefused as refused:
                self._faults.setdefault(name, f"tensor {quoted(name)} {refused.message}")
        if self._pieces > MOST_PIECES or len(self._wholes) > MOST_TENSORS:
            raise InputRefused(f"holds more than {MOST_PIECES:,} pieces of tensors, or {MOST_TENSORS:,} tensors")

    def joined(self, first: StateDict, root: object) -> JoinedRanks:
        """Return all tensors, with the state dict and the pickle of the first rank.

        Raises:
            InputRefused: the pieces of a tensor do not tile it.

        """
        layouts: list[TensorLayout] = []
        places: list[StoredPiece] = []
        for name, whole in self._wholes.items():
            if name in self._unreadable or name in self._faults:
                continue
            try:
                layout, solid = _join(name, whole)
            except InputRefused as refused:
                self._faults[name] = f"tensor {quoted(name)} {refused.message}"
            else:
                layouts.append(layout)
                places.extend(piece.place for piece in solid)
        has_placements = any(whole.is_placed for whole in self._wholes.values())
        if self._faults:
            raise InputRefused(
                f"{'' if has_placements else UNDEFINED}{shortlist(self._faults.values())}",
                hint=_WHOLE_SAVE if has_placements else JOIN_FIRST,
            )
        return JoinedRanks(
            layouts=tuple(layouts),
            places=tuple(places),
            copies=tuple(self._copies),
            unreadable=tuple(self._unreadable.items()),
            has_placements=has_placements,
            first=first,
            root=root,
        )

    def _add(self, rank: int, name: str, tensor: Tensor) -> None:
        if not writable_name(name):
            raise InputRefused("has a name that cannot be written")
        if isinstance(tensor, UnsupportedTensor):
            raise UnreadableTensor(f"is a {tensor.kind} tensor, {tensor.why}")
        is_placed = isinstance(tensor, RankTensor)
        whole = self._wholes.setdefault(
            name, _Whole(shape=tensor.shape, dtype_name=tensor.dtype_name, is_placed=is_placed)
        )
        if (whole.shape, whole.dtype_name, whole.is_placed) != (tensor.shape, tensor.dtype_name, is_placed):
            here, there = (f"{safe_text(one.dtype_name)} {list(one.shape)}" for one in (tensor, whole))
            raise InputRefused(f"is {here} on rank {rank}, but {there} on an earlier one")
        for part in _parts_of(tensor):
            self._pieces += 1
            piece = _located(rank, name, part)
            key = f"{piece.origin} {piece.layout.shape}"
            known = whole.pieces.setdefault(key, piece)
            if known is not piece and piece.layout.elements:
                self._copies.append(Copy(name, is_placed, len(tensor.shape), known.place, piece.place))


def _parts_of(tensor: TensorRef) -> Iterator[LocalPart]:
    if isinstance(tensor, RankTensor):
        yield from tensor.parts
    else:
        yield LocalPart(origin=(0,) * len(tensor.shape), view=tensor)


def _located(rank: int, name: str, part: LocalPart) -> _RankRectangle:
    storage = part.view.storage
    size = storage.elements * (element_bytes(storage.kind) or 0)
    layout, offset = locate_tensor(name, part.view, size)
    reach = layout.nbytes if layout.strides is None else span(layout.shape, layout.strides) * layout.dtype.itemsize
    return _RankRectangle(part.origin, layout, StoredPiece(rank, storage.key, size, offset, reach))


def _join(name: str, whole: _Whole) -> tuple[TensorLayout, Sequence[_RankRectangle]]:
    """Return a whole tensor, and its pieces, in the order of their origins."""
    pieces = sorted(whole.pieces.values(), key=lambda piece: piece.origin)
    check_tiling(whole.shape, [(piece.origin, piece.layout.shape) for piece in pieces])
    if not pieces:
        raise UnreadableTensor("has no elements on any rank")
    dtype: DType = pieces[0].layout.dtype
    solid = [piece for piece in pieces if piece.layout.elements] or pieces[:1]
    parts = tuple(Part(origin=piece.origin, shape=piece.layout.shape, strides=piece.layout.strides) for piece in solid)
    alone = len(solid) == 1
    return TensorLayout(
        name=name,
        dtype=dtype,
        shape=whole.shape,
        strides=solid[0].layout.strides if alone else None,
        parts=() if alone else parts,
    ), solid
