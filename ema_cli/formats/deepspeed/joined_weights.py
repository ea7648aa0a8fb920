"""The weights of a checkpoint whose float32 partitions are in the optimizer states of all ranks, as one structure.

Nothing is joined in memory: each parameter becomes a chain of links in the files of the ranks. Buffers and parameters
that are not trained come from the model states.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import add

from ema_cli.dtypes import DType
from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed.model_states import ModelStates, Shape
from ema_cli.formats.deepspeed.partitions import MOST_PIECES, JoinedParameters, PieceTable, SplitParameters
from ema_cli.formats.deepspeed.rank_file import RankFile
from ema_cli.formats.deepspeed.rank_states import Partitions
from ema_cli.formats.structure import UnreadableTensor, writable_name
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.record import record
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import quoted

_STAGE_3 = 3
NO_FLOAT32 = "is an empty placeholder, and the checkpoint does not declare its shape"


@record
class WholeTensor:
    """A tensor that is not trained: from the model, or from the fragments of the ranks."""

    name: str
    dtype: DType
    shape: Shape
    strides: tuple[int, ...] | None
    firsts: range
    """The first element of each piece."""
    slots: range
    """The number of the place of each piece."""


@record
class Joined:
    """All tensors with their pieces, the same for checkpoints of equal shapes and ranks."""

    layouts: tuple[TensorLayout, ...]
    slots: array[int]
    """The place that each piece is in."""
    starts: array[int]
    """Bytes from the beginning of that place."""
    files: array[int]
    """The number of the file of each piece."""


class Places:
    """Where the tensors of the ranks begin: those of the partitions first, then others."""

    def __init__(self, partitions: Partitions | None = None) -> None:
        ranks = () if partitions is None else partitions.ranks
        self.begins = array("q", (begin for flat in ranks for begin in flat.begins))
        self.files = array("q", (flat.file.number for flat in ranks for _ in flat.begins))

    def add(self, file: RankFile, begin: int) -> int:
        """Add a place, and return its number."""
        self.begins.append(begin)
        self.files.append(file.number)
        return len(self.begins) - 1

    def offsets(self, joined: Joined) -> array[int]:
        """Return the byte offset of every piece."""
        return array("q", map(add, map(self.begins.__getitem__, joined.slots), joined.starts))


def locate_in_model(
    states: ModelStates, file: RankFile, places: Places, *, whole: bool
) -> tuple[list[WholeTensor], list[tuple[str, str]]]:
    """Return the tensors of the model that are not trained, and name and reason of those that cannot be read.

    Args:
        states: of the first rank.
        file: with these states.
        places: gets the places of the tensors.
        whole: whether the model has all weights, and not placeholders.

    """
    known = {name for name, _ in (*states.trained, *states.frozen)} | {name for name, _ in states.shared}
    found, unreadable = [], []
    for name, tensor in states.module.items():
        if name in known:
            continue
        try:
            found.append(_whole(name, tensor, file, places, whole=whole or name in states.buffers))
        except UnreadableTensor as reason:
            unreadable.append((name, reason.message))
        except InputRefused as refused:
            raise file.refusal(f"tensor {quoted(name)} {refused.message}", refused.hint) from refused
    return found, unreadable


def _whole(
    name: str, tensor: TensorRef | UnsupportedTensor, file: RankFile, places: Places, *, whole: bool
) -> WholeTensor:
    if not writable_name(name):
        raise InputRefused("has a name that cannot be written")
    if isinstance(tensor, UnsupportedTensor):
        raise UnreadableTensor(f"is a {tensor.kind} tensor, {tensor.why}")
    if tensor.shape == (0,) and not whole:
        raise UnreadableTensor(NO_FLOAT32)
    layout, begin = file.locate(name, tensor)
    return in_one_piece(layout, layout.shape, places.add(file, begin))


def in_one_piece(layout: TensorLayout, shape: Shape, slot: int) -> WholeTensor:
    """Return a tensor of ``shape`` that is in one place."""
    return WholeTensor(
        name=layout.name,
        dtype=layout.dtype,
        shape=shape,
        strides=layout.strides,
        firsts=range(1),
        slots=range(slot, slot + 1),
    )


class FrozenParameters:
    """The parameters that are not trained: at stage 3 a fragment of each is in the model states of every rank.

    Args:
        states: of the first rank.
        places: gets the places of the fragments, rank by rank.

    """

    def __init__(self, states: ModelStates, places: Places) -> None:
        self._frozen = states.frozen
        self._places = places
        self._first_place = len(places.begins)
        self._layouts: list[TensorLayout] = []
        """Of the fragments of the first rank."""
        self._ranks = 0

    def add(self, file: RankFile, states: ModelStates, ranks: int) -> None:
        """Add the fragments of the next of all ``ranks``.

        Raises:
            InputRefused: one is missing, or has a wrong size.

        """
        if len(self._frozen) * ranks > MOST_PIECES:
            raise file.refusal(f"has parameters in more than {MOST_PIECES:,} pieces")
        for number, (name, shape) in enumerate(self._frozen):
            layout, begin = _fragment(name, file, states.fragments)
            if not self._ranks:
                self._layouts.append(layout)
            first = self._layouts[number]
            length = -(-math.prod(shape) // ranks)
            is_part = (layout.elements, layout.dtype, layout.strides) == (length, first.dtype, None)
            if first.shape != shape and not is_part:
                held = f"{layout.elements:,} elements of {quoted(name)}, {list(shape)}"
                raise file.refusal(f"has a fragment of {held}, which is not a part of 1/{ranks:,}")
            self._places.add(file, begin)
        self._ranks += 1

    def tensors(self) -> Iterator[WholeTensor]:
        """Yield the parameters."""
        for number, ((name, shape), first) in enumerate(zip(self._frozen, self._layouts, strict=True)):
            elements = math.prod(shape)
            whole = first.shape == shape or not elements  # every rank has it
            firsts = range(1) if whole else range(0, elements, first.elements)
            begin, step = self._first_place + number, len(self._frozen)
            yield WholeTensor(
                name=name,
                dtype=first.dtype,
                shape=shape,
                strides=first.strides if whole else None,
                firsts=firsts,
                slots=range(begin, begin + step * len(firsts), step),
            )


def _fragment(name: str, file: RankFile, fragments: Mapping[str, object]) -> tuple[TensorLayout, int]:
    tensor = fragments.get(name)
    if not isinstance(tensor, TensorRef):
        raise file.refusal(f"has no fragment of the parameter {quoted(name)}, which is not trained")
    try:
        return file.locate(name, tensor)
    except InputRefused as refused:
        raise file.refusal(f"tensor {quoted(name)} {refused.message}", refused.hint) from refused


def join(
    states: ModelStates, partitions: Partitions | None, others: Iterable[WholeTensor], files: Sequence[int]
) -> Joined:
    """Return all tensors, in the order of the model.

    Args:
        states: of the first rank.
        partitions: of the trained parameters, if they are in partitions.
        others: all other tensors.
        files: the number of the file of each place.

    Raises:
        InputRefused: the partitions contradict the shapes of the parameters.

    """
    table = PieceTable()
    found: dict[str, tuple[TensorLayout, range]] = {}
    if partitions is not None:
        for name, shape, links in _trained(states, partitions, table):
            begin = len(table) - (len(links) or 1)
            layout = TensorLayout(name=name, dtype=partitions.dtype, shape=shape, strides=None, links=links)
            found[name] = layout, range(begin, len(table))
    for one in others:
        begin = len(table)
        links = table.add(one.firsts, one.slots, list(repeat(0, len(one.slots))))
        layout = TensorLayout(name=one.name, dtype=one.dtype, shape=one.shape, strides=one.strides, links=links)
        found[one.name] = layout, range(begin, len(table))
    for name, of in states.shared:
        if of in found:
            layout, pieces = found[of]
            found[name] = _renamed(layout, name), pieces
    itemsize = 1 if partitions is None else partitions.dtype.itemsize  # all others begin where their place does
    return _in_order(found, states, table, itemsize, files)


def _renamed(layout: TensorLayout, name: str) -> TensorLayout:
    return TensorLayout(name=name, dtype=layout.dtype, shape=layout.shape, strides=layout.strides, links=layout.links)


def _trained(
    states: ModelStates, partitions: Partitions, table: PieceTable
) -> Iterator[tuple[str, Shape, tuple[int, ...]]]:
    """Add the pieces of the trained parameters to a table; yield name, shape and links of each."""
    ranks = partitions.ranks
    if partitions.stage == _STAGE_3:
        if len({flat.sizes for flat in ranks}) > 1:
            raise InputRefused("has flat tensors of different sizes in the files of its ranks")
        split = SplitParameters(ranks[0].sizes, len(ranks))
        for name, shape in states.trained:
            yield name, shape, split.take(math.prod(shape), table)
        split.finish()
        return
    groups = len(ranks[0].sizes)
    if groups != len(states.groups):
        raise InputRefused(f"has flat tensors for {groups} parameter groups, but shapes for {len(states.groups)}")
    for number, group in enumerate(states.groups):
        joined = JoinedParameters([flat.sizes[number] for flat in ranks], number, groups)
        paddings = _paddings(partitions, number, len(group))
        for (name, shape), padding in zip(group, paddings, strict=True):
            yield name, shape, joined.take(math.prod(shape), padding, table)
        joined.finish()


def _paddings(partitions: Partitions, group: int, parameters: int) -> Iterable[int]:
    if not partitions.paddings:
        return repeat(0, parameters)
    found = partitions.paddings[group] if group < len(partitions.paddings) else ()
    if len(found) != parameters:
        raise InputRefused(f"has paddings of {len(found):,} parameters in group {group}, which has {parameters:,}")
    return found


def _in_order(
    found: Mapping[str, tuple[TensorLayout, range]],
    states: ModelStates,
    table: PieceTable,
    itemsize: int,
    files: Sequence[int],
) -> Joined:
    """Return the tensors in the order of the model, and their pieces in that order."""
    names = [name for name in states.module if name in found]
    names += [name for name in found if name not in states.module]
    slots, starts = array("q"), array("q")
    for name in names:
        pieces = found[name][1]
        slots.extend(table.slots[pieces.start : pieces.stop])
        starts.extend(start * itemsize for start in table.starts[pieces.start : pieces.stop])
    return Joined(
        layouts=tuple(found[name][0] for name in names),
        slots=slots,
        starts=starts,
        files=array("q", map(files.__getitem__, slots)),
    )
