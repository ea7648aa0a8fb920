"""Where the planned tensors are in the files of the last checkpoint, and whether their bytes can be replaced there.

A tensor can be replaced if no other object of the checkpoint has some of its bytes. Tied tensors are one object under
several names: they can be replaced if they are tied in every checkpoint that is read, as their averages are equal then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import join
from ema_cli.formats.torch.references import StoredView
from ema_cli.formats.torch.stored_file import StoredFile
from ema_cli.planning.byte_views import ByteView, overlapping, overlaps_itself, view_of
from ema_cli.record import record
from ema_cli.records.files import Place
from ema_cli.records.plan import Action, PlannedTensor
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Chain, Extent, Located, Mosaic, TensorLayout, contiguous_strides
from ema_cli.storage.strided_read import flat_boxes
from ema_cli.text import listing, quoted, shortlist

_MOST_LINES = 8
_MOST_COMPARED = 1_000_000
"""Pairs of tensors in one storage that are compared."""
INSTEAD = "-o ema.safetensors writes the averages by themselves"

Spot = tuple[int, int, tuple[int, ...], tuple[int, ...], int]
"""Where a tensor in one piece is: file, byte, shape, strides, bytes of an element."""


@record
class FoundTensor:
    """A tensor of the last checkpoint."""

    name: str
    located: Located
    planned: PlannedTensor | None
    """``None`` if it is not selected."""
    is_changed: bool
    """Whether the output has other bytes than the last checkpoint."""
    twins: tuple[Extent, ...] = ()
    """The same tensor in the files of other ranks."""


def find_tensors(last: Checkpoint, planned: Sequence[PlannedTensor], newest: int) -> list[FoundTensor]:
    """Return every tensor of the last checkpoint, which is number ``newest``."""
    by_name = {tensor.name: tensor for tensor in planned}
    found = []
    twins: defaultdict[int, list[Extent]] = defaultdict(list)
    for position, file, offset in last.twins:
        layout = last.index.layouts[position]
        twins[position].append(Extent(source=last.index.sources[file], offset=offset, layout=layout))
    for position, layout in enumerate(last.index.layouts):
        tensor = by_name.get(layout.name)
        is_changed = tensor is not None and (tensor.action is not Action.COPIED or tensor.copied_from != newest)
        found.append(
            FoundTensor(
                name=layout.name,
                located=last.index.extent(position),
                planned=tensor,
                is_changed=is_changed,
                twins=tuple(twins.get(position, ())),
            )
        )
    return found


def places_of(found: FoundTensor, numbers: Mapping[object, int]) -> tuple[Place, ...]:
    """Return the places of a tensor; ``numbers`` has the number of each source."""
    located = found.located
    tiles = [((0,) * len(located.layout.shape), located)] if isinstance(located, Extent) else _tiles(located)
    return tuple(
        Place(
            file=numbers[extent.source],
            offset=extent.offset,
            origin=origin,
            shape=extent.layout.shape,
            strides=extent.layout.strides,
        )
        for origin, extent in (*tiles, *(((0,) * len(twin.layout.shape), twin) for twin in found.twins))
        if extent.layout.elements
    )


def _tiles(located: Mosaic | Chain) -> Iterable[tuple[tuple[int, ...], Extent]]:
    """Return the rectangles of a tensor; each link of a chain is a few of them, contiguous one after the other."""
    if isinstance(located, Mosaic):
        return located.tiles
    return [tile for number in range(len(located.layout.links)) for tile in _tiles_of_link(located, number)]


def _tiles_of_link(chain: Chain, number: int) -> Iterator[tuple[tuple[int, ...], Extent]]:
    link, whole = chain.link(number), chain.layout
    offset = link.offset
    for box in flat_boxes(whole.shape, chain.begin(number), chain.begin(number + 1)):
        shape = tuple(stop - first for first, stop in box)
        inner = TensorLayout(name=whole.name, dtype=whole.dtype, shape=shape, strides=None)
        yield tuple(first for first, _ in box), link._replace(offset=offset, layout=inner)
        offset += inner.nbytes


def refuse_other_layouts(tensors: Sequence[FoundTensor], last: Checkpoint) -> None:
    """Raise if a tensor has another shape or type in the output than in the last checkpoint.

    Raises:
        InputRefused: naming the tensors.

    """
    lines = [
        f"{quoted(found.name)} would be {found.planned.dtype.torch_name} {list(found.planned.shape)}, and is "
        f"{found.located.layout.dtype.torch_name} {list(found.located.layout.shape)} there"
        for found in tensors
        if found.planned is not None
        and found.is_changed
        and (found.planned.dtype, found.planned.shape) != (found.located.layout.dtype, found.located.layout.shape)
    ]
    _refuse(lines, last)


def shared_names(
    tensors: Sequence[FoundTensor], numbers: Mapping[object, int], checkpoints: Sequence[Checkpoint]
) -> frozenset[str]:
    """Return the names of changed tensors that are tied to an earlier one, and need no place of their own.

    Args:
        tensors: of the last checkpoint.
        numbers: the number of each source.
        checkpoints: that are read, the last at the end.

    Raises:
        InputRefused: tensors share their bytes but not their averages.

    """
    groups: defaultdict[object, list[FoundTensor]] = defaultdict(list)
    for found in tensors:
        if found.located.layout.elements:
            groups[places_of(found, numbers), found.located.layout.dtype].append(found)
    tied = [group for group in groups.values() if len(group) > 1 and any(found.is_changed for found in group)]
    ties = [checkpoint.ties for checkpoint in checkpoints] if tied else []
    _refuse([line for group in tied for line in _apart(group, checkpoints, ties)], checkpoints[-1])
    return frozenset(found.name for group in tied for found in group[1:])


def _apart(
    group: Sequence[FoundTensor], checkpoints: Sequence[Checkpoint], ties: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    """Yield why the names of one tensor cannot be replaced together."""
    first = next(found for found in group if found.is_changed)
    for found in group:
        if not found.is_changed:
            why = "is not selected" if found.planned is None else f"is copied ({found.planned.why_copied})"
            yield f"{quoted(first.name)} is averaged, and {quoted(found.name)}, which has the same bytes, {why}"
            return
    for checkpoint, known in zip(checkpoints, ties, strict=True):
        names = [found.name for found in group]
        if len({known.get(name, name) for name in names}) > 1:
            shown = shortlist(map(quoted, names))
            yield f"{shown} have the same bytes there, but not in {quoted(checkpoint.path.name)}"
            return


def refuse_shared(
    tensors: Sequence[FoundTensor], numbers: Mapping[object, int], stored: Mapping[int, StoredFile], last: Checkpoint
) -> None:
    """Raise if bytes of changed tensors are also those of something else in the last checkpoint.

    Args:
        tensors: of the last checkpoint.
        numbers: the number of each source.
        stored: the files of torch by number; other formats have no tensors that share bytes.
        last: the last checkpoint.

    Raises:
        InputRefused: naming what shares bytes.

    """
    spots: defaultdict[Spot, list[FoundTensor]] = defaultdict(list)
    for found in tensors:
        for place in places_of(found, numbers):
            if place.file in stored:
                strides = contiguous_strides(place.shape) if place.strides is None else place.strides
                spots[
                    _spot(place.file, place.offset, place.shape, strides, found.located.layout.dtype.itemsize)
                ].append(found)
    changed = {spot for spot, owners in spots.items() if any(found.is_changed for found in owners)}
    lines = [
        f"{quoted(spots[spot][0].name)} has elements that share bytes, as an expanded tensor has; save it with .clone()"
        for spot in changed
        if overlaps_itself(_view(spot))
    ]
    lines += list(_other_references(spots, changed, stored, last.key))
    _refuse(lines, last)


def _other_references(
    spots: Mapping[Spot, list[FoundTensor]],
    changed: Collection[Spot],
    stored: Mapping[int, StoredFile],
    key_of_weights: str,
) -> Iterator[str]:
    """Yield what else refers to the storages of changed tensors and would change, too."""
    names = {spot: spots[spot][0].name for spot in changed}
    own = {spot: [join(key_of_weights, found.name) for found in spots[spot]] for spot in changed}
    by_file: defaultdict[int, list[Spot]] = defaultdict(list)
    for spot in changed:
        by_file[spot[0]].append(spot)
    for number, file in stored.items():
        of_file = by_file[number]
        file.announce(spot[1] for spot in of_file)
        storages: dict[str, int] = {}
        inside: defaultdict[str, list[Spot]] = defaultdict(list)
        for spot in of_file:
            at = file.at(spot[1])
            storages[at.key] = at.begin
            inside[at.key].append(spot)
        for key, found in file.references.of(storages.keys()).items():
            yield from _in_storage(inside[key], found, storages[key], names, own)


def _in_storage(
    changed: Sequence[Spot],
    found: Sequence[StoredView],
    begin: int,
    names: Mapping[Spot, str],
    own: Mapping[Spot, Sequence[str]],
) -> Iterator[str]:
    """Yield what else refers to a storage, which begins at byte ``begin``, and has the ``changed`` tensors."""
    views: defaultdict[Spot, list[StoredView]] = defaultdict(list)
    for view in found:
        if view.is_known and 0 not in view.shape:
            views[_spot(changed[0][0], begin + view.begin, view.shape, view.strides, view.itemsize)].append(view)
    if not all(view.is_known for view in found):
        shown = shortlist((quoted(names[spot]) for spot in changed), most=2)
        yield f"{shown}: an object of another kind refers to the same storage"
    yield from _sharing(views, begin, names, own)
    parts = [spot for spot in changed if spot not in views]  # such as parameters in a flat tensor
    if parts and sum(map(len, views.values())) > 1:
        yield _shares(names[parts[0]], [view for seen in views.values() for view in seen], own[parts[0]])


def _sharing(
    views: Mapping[Spot, Sequence[StoredView]],
    begin: int,
    names: Mapping[Spot, str],
    own: Mapping[Spot, Sequence[str]],
) -> Iterator[str]:
    """Yield which views of a storage, which begins at byte ``begin``, share bytes with a changed tensor.

    ``names`` are those of the changed tensors, and ``own`` the paths of each.
    """
    for spot, seen in views.items():
        if spot in names and len(seen) > len(own[spot]):
            yield _shares(names[spot], seen, own[spot])
    for pair in overlapping([(_view(spot, begin), spot) for spot in views], most=_MOST_COMPARED):
        mine = next((spot for spot in pair if spot in names), None)
        if mine is not None:
            other = pair[1] if pair[0] == mine else pair[0]
            yield f"{quoted(names[mine])} has some of its bytes in common with {quoted(views[other][0].path)}"
            return


def _shares(name: str, seen: Sequence[StoredView], own: Collection[str]) -> str:
    """Return the line for a tensor that other parts of the file have, too; ``own`` are its paths."""
    others = [view.path for view in seen if view.path not in own]
    paths = others or [view.path for view in seen]
    return f"{quoted(name)} has the same bytes as {shortlist(map(quoted, paths), most=3)}, which would change, too"


def _spot(file: int, offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Spot:
    """Return where a tensor is; strides of dimensions of size 1, which do not matter, are those of C order."""
    plain = contiguous_strides(shape)
    normal = tuple(c if size == 1 else stride for size, stride, c in zip(shape, strides, plain, strict=True))
    return file, offset, tuple(shape), normal, itemsize


def _view(spot: Spot, begin: int = 0) -> ByteView:
    """Return the view of a tensor in a storage that begins at byte ``begin``."""
    _, offset, shape, strides, itemsize = spot
    return view_of(offset - begin, shape, strides, itemsize)


def _refuse(lines: Sequence[str], last: Checkpoint) -> None:
    if lines:
        title = f"the averages cannot be put into a copy of {quoted(str(last.path))}:"
        raise InputRefused(listing(title, lines, most=_MOST_LINES), hint=INSTEAD)
