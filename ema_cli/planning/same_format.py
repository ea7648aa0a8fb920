"""``--format same``: the averages in the places that the last checkpoint has for its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.dcp.dcp_names import METADATA
from ema_cli.formats.huggingface.weight_names import is_index
from ema_cli.formats.torch.stored_file import StoredFile, open_stored
from ema_cli.options.average import Options
from ema_cli.options.output_options import TORCH_SUFFIXES
from ema_cli.planning.copied_folder import FolderContents, below, contents_below, plan_copies
from ema_cli.planning.master_weights import warn_of_masters
from ema_cli.planning.placed_tensors import (
    INSTEAD,
    FoundTensor,
    find_tensors,
    places_of,
    refuse_other_layouts,
    refuse_shared,
    shared_names,
)
from ema_cli.records.files import Checksum, PlacedFile, PlacedTensor, Placement
from ema_cli.records.plan import PlannedTensor
from ema_cli.records.series import Checkpoint, OrderedCheckpoint, Role
from ema_cli.storage.locations import Location, is_folder
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, shortlist
from ema_cli.weights.methods import Weighting

_DCP = "DCP"
_IN_SEVERAL_FILES = ("shard", "DeepSpeed ZeRO-3")
"""Formats that have each tensor once, or list where other ranks have it too."""
_SAFETENSORS = ".safetensors"
FindChecksum = Callable[[int, ByteSource, int], Checksum | None]
"""Returns the checksum of the bytes at an offset of a file, by the number of the file."""


def place_in_copy(
    weightings: Sequence[Weighting],
    members: Sequence[OrderedCheckpoint],
    tensors: Sequence[PlannedTensor],
    options: Options,
) -> Placement:
    """Return the files of the last checkpoint, and where the tensors are in them.

    Raises:
        UsageError: the name of the output does not fit the last checkpoint.
        InputRefused: the bytes of a tensor cannot be replaced, or something else cannot be copied.

    """
    last = members[-1].checkpoint
    if members[-1].role is not Role.CHECKPOINT:
        raise UsageError("--format same needs a checkpoint after the previous average", hint="-o ema.safetensors")
    root = _root(last.path)
    _check_name(last, root, options)
    _refuse_second_copy(last)
    found = find_tensors(last, tensors, len(members) - 1)
    refuse_other_layouts(found, last)
    sources = _sources_with_tensors(last)
    numbers: dict[object, int] = {source: number for number, source in enumerate(sources)}
    read = [m.checkpoint for i, m in enumerate(members[:-1]) if any(w.weights[i] for w in weightings)]
    tied = shared_names(found, numbers, [*read, last])
    stored = _stored_files(last, numbers)
    refuse_shared(found, numbers, stored, last)
    placed = _placed(found, tensors, numbers, tied)
    contents = None if root is None else contents_below(root)
    names = {0: last.path.name} if root is None or contents is None else _names(root, contents, sources)
    files = _files(last, names, numbers, placed, _finder(last, names, stored))
    if root is None or contents is None:
        return Placement(files=files, tensors=placed, warnings=warn_of_masters(last, stored.values()))
    others = set(contents.files) - {file.name for file in files}
    return Placement(
        files=files,
        tensors=placed,
        folder=True,
        beside=plan_copies(root, others),
        empty_folders=contents.empty_folders,
        warnings=warn_of_masters(last, stored.values(), sorted(others)),
    )


def _root(path: Location) -> Location | None:
    """Return the folder that is copied; ``None`` if the checkpoint is a file."""
    if is_folder(path):
        return path
    return path.parent if is_index(path.name) else None


def _check_name(last: Checkpoint, root: Location | None, options: Options) -> None:
    """Raise if the name of the output is that of something else than the last checkpoint."""
    output = options.output
    assert output is not None, "the options were checked"  # noqa: S101
    shown, source = quoted(str(output)), quoted(str(last.path))
    is_safetensors = last.format.startswith("safetensors")
    if root is not None and output.suffix in (*TORCH_SUFFIXES, _SAFETENSORS):
        message = f"the output {shown} is a file, but the last checkpoint, {source}, is a folder"
        hint = f"--format same -o {output.with_suffix('')}/ copies it; {INSTEAD}"
    elif root is None and (options.max_shard_size is not None or is_folder(output)):
        message = f"the output {shown} is a folder, but the last checkpoint, {source}, is a file"
        hint = f"-o {output}{last.path.suffix or '.pt'}"
    elif is_safetensors and root is None and output.suffix in TORCH_SUFFIXES:
        message = f"the output {shown} would be a safetensors file, like the last checkpoint, {source}"
        hint = f"-o {output.with_suffix(_SAFETENSORS)}"
    elif root is None and not is_safetensors and output.suffix == _SAFETENSORS:
        message = f"the output {shown} would be a {last.format} file, like the last checkpoint, {source}"
        hint = f"-o {output.with_suffix(last.path.suffix if last.path.suffix in TORCH_SUFFIXES else '.pt')}"
    elif root is not None and options.resume:
        message, hint = "--resume keeps one partial file, not a folder", "leave out --resume"
    else:
        return
    raise UsageError(message, hint=hint)


def _refuse_second_copy(last: Checkpoint) -> None:
    """Raise if the checkpoint has the weights once more, where they would not be replaced.

    Raises:
        InputRefused: it has.

    """
    if last.second_copy:
        raise InputRefused(
            f"{quoted(str(last.path))} has the weights once more: {last.second_copy}; the averages would contradict "
            "them",
            hint=INSTEAD,
        )


def _sources_with_tensors(last: Checkpoint) -> list[ByteSource]:
    """Return the files of a checkpoint that have tensors, in order."""
    _, files = last.index.places
    return [last.index.sources[number] for number in sorted({*files, *(file for _, file, _ in last.twins)} or {0})]


def _stored_files(last: Checkpoint, numbers: Mapping[object, int]) -> dict[int, StoredFile]:
    """Return the files of torch by number.

    Raises:
        InputRefused: they are of several ranks, each of which may have a copy of a tensor.

    """
    if last.format == _DCP:
        return {}
    opened = {number: open_stored(source) for source, number in numbers.items() if isinstance(source, ByteSource)}
    stored = {number: file for number, file in opened.items() if file is not None}
    if len(stored) > 1 and not any(form in last.format for form in _IN_SEVERAL_FILES):
        raise InputRefused(
            f"{quoted(str(last.path))} has the weights in the files of several ranks, which may have copies of some; "
            "the averages cannot be put into all of them",
            hint=INSTEAD,
        )
    return stored


def _placed(
    found: Sequence[FoundTensor], tensors: Sequence[PlannedTensor], numbers: Mapping[object, int], tied: frozenset[str]
) -> tuple[PlacedTensor, ...]:
    """Return the planned tensors, in their order, with the places of those that change."""
    places = {one.name: places_of(one, numbers) if one.is_changed and one.name not in tied else () for one in found}
    return tuple(
        PlacedTensor(begin=one.offset, shape=one.shape, itemsize=one.dtype.itemsize, places=places[one.name])
        for one in tensors
    )


def _files(
    last: Checkpoint,
    names: Mapping[int, str],
    numbers: Mapping[object, int],
    placed: Sequence[PlacedTensor],
    find: FindChecksum,
) -> tuple[PlacedFile, ...]:
    """Return the files with tensors."""
    offsets: dict[int, set[int]] = {number: set() for number in numbers.values()}
    for tensor in placed:
        for place in tensor.places:
            offsets[place.file].add(place.offset)
    files = []
    for source, number in zip(_sources_with_tensors(last), numbers.values(), strict=True):
        found = (find(number, source, offset) for offset in sorted(offsets[number]))
        distinct = {one.begin: one for one in found if one is not None}
        files.append(
            PlacedFile(name=names[number], nbytes=source.size(), source=source, checksums=tuple(distinct.values()))
        )
    return tuple(files)


def _names(root: Location, contents: FolderContents, sources: Sequence[ByteSource]) -> dict[int, str]:
    """Return the path of each source in the folder, by its number.

    Raises:
        InputRefused: one is not in it.

    """
    by_name = {source.name: number for number, source in enumerate(sources)}
    listed = {str(below(root, name)): name for name in contents.files}
    outside = [quoted(name) for name in by_name if name not in listed]
    if outside:
        raise InputRefused(f"{shortlist(outside)} is not in {quoted(str(root))}, which is copied", hint=INSTEAD)
    return {number: listed[name] for name, number in by_name.items()}


def _finder(last: Checkpoint, names: Mapping[int, str], stored: Mapping[int, StoredFile]) -> FindChecksum:
    """Return how the checksums of a format are found."""
    if last.format != _DCP:
        return lambda number, _, offset: stored[number].at(offset).checksum if number in stored else None
    from ema_cli.formats.dcp.chunk_checksums import ChunkChecksums  # noqa: PLC0415 - only the format that there is

    metadata = next(source for source in last.index.sources if PurePath(source.name).name == METADATA)
    chunks = ChunkChecksums(metadata.read(0, metadata.size()))
    tables = {source: last.index.checksums(file) for file, source in enumerate(last.index.sources)}

    def find(number: int, source: ByteSource, offset: int) -> Checksum | None:
        table = tables[source]
        record = None if table is None else table.find(offset)
        return chunks.find(PurePath(names[number]).name, source, offset, 0 if record is None else record.crc32)

    return find
