"""``--format same``: the averages in the places that the last checkpoint has for its weights."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.formats.torch.first_bytes import looks_like_zip
from ema_cli.options.average import Options
from ema_cli.records.files import Checksum, Place, PlacedFile, PlacedTensor, Placement
from ema_cli.records.plan import Action, PlannedTensor
from ema_cli.records.series import OrderedCheckpoint, Role
from ema_cli.storage.extents import Extent, Located
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted
from ema_cli.weights.methods import Weighting


def place_in_copy(
    weightings: Sequence[Weighting],
    members: Sequence[OrderedCheckpoint],
    tensors: Sequence[PlannedTensor],
    options: Options,
) -> Placement:
    """Return the files of the last checkpoint, and where the tensors are in them.

    Raises:
        UsageError: the tensors cannot be replaced there.

    """
    last = members[-1].checkpoint
    if members[-1].role is not Role.CHECKPOINT:
        raise UsageError("--format same needs a checkpoint after the previous average", hint="-o ema.safetensors")
    positions = {layout.name: position for position, layout in enumerate(last.index.layouts)}
    sources = {source: number for number, source in enumerate(last.index.sources)}
    located = [last.index.extent(positions[tensor.name]) for tensor in tensors]
    changed = [tensor.action is Action.AVERAGED or tensor.copied_from != len(members) - 1 for tensor in tensors]
    placed = [
        _placed(tensor, extent, sources, is_changed=is_changed)
        for tensor, extent, is_changed in zip(tensors, located, changed, strict=True)
    ]
    files = [
        PlacedFile(
            name=last.path.name,
            nbytes=source.size(),
            source=source,
            checksums=_checksums(source, [place.offset for one in placed for place in one.places if place.file == number]),
        )
        for source, number in sources.items()
    ]
    return Placement(files=tuple(files), tensors=tuple(placed))


def _checksums(source: ByteSource, offsets: Sequence[int]) -> tuple[Checksum, ...]:
    if not looks_like_zip(source.read(0, 4)):
        return ()
    from ema_cli.formats.torch.zip_checksums import ZipChecksums  # noqa: PLC0415 - only the format that there is

    archive = ZipChecksums(source)
    found = {one.begin: one for one in map(archive.of_record, offsets) if one is not None}
    return tuple(found[begin] for begin in sorted(found))


def _placed(
    tensor: PlannedTensor, located: Located, files: dict[ByteSource, int], *, is_changed: bool
) -> PlacedTensor:
    layout = located.layout
    if (layout.shape, layout.dtype) != (tensor.shape, tensor.dtype):
        raise UsageError(f"{quoted(tensor.name)} has another shape or type in the last checkpoint", hint="-o ema.safetensors")
    tiles = [((0,) * len(layout.shape), located)] if isinstance(located, Extent) else located.tiles
    places = tuple(
        Place(
            file=files[extent.source],
            offset=extent.offset,
            origin=origin,
            shape=extent.layout.shape,
            strides=extent.layout.strides,
        )
        for origin, extent in tiles
    )
    return PlacedTensor(
        begin=tensor.offset, shape=tensor.shape, itemsize=tensor.dtype.itemsize, places=places if is_changed else ()
    )
