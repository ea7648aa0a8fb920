"""A copy of a checkpoint in which only the bytes of some tensors are replaced; everything else keeps its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePath

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.huggingface.weight_names import is_index
from ema_cli.formats.safetensors import build_header, header_with
from ema_cli.record import record
from ema_cli.records.files import PlannedFile, SideFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Extent, Located, TensorLayout
from ema_cli.storage.locations import is_folder
from ema_cli.storage.source import ByteSource
from ema_cli.storage.strided_read import read_block
from ema_cli.text import quoted, shortlist
from ema_cli.weights.methods import Method, Weighting

_PIECE_BYTES = 1 << 22
_LENGTH_BYTES = 8
"""Of the length of a safetensors header."""
_COPY = Weighting(method=Method(name="uniform"), weights=(1.0,), shares=(1.0,))
"""A copy is the mean of one checkpoint."""


@record
class OutputCopy:
    """An output that is to be written, and the pieces of its data section."""

    planned: PlannedOutput
    pieces: Iterator[tuple[int, memoryview]]
    """Consecutive pieces: offset in the data section of the output, and bytes."""


def copy_of(
    checkpoint: Checkpoint,
    path: Path,
    replaced: Mapping[str, bytes],
    metadata: Mapping[str, str],
    *,
    beside: Sequence[SideFile] | None = None,
) -> OutputCopy:
    """Return the copy of an open checkpoint: a file, or a folder with the files ``beside`` its weights.

    Safetensors files are copied byte by byte, their tensors in their order. If a file is wanted and there are several,
    or the names of tensors have prefixes of wrappers, or the format is another, the weights are copied into a new file.

    Args:
        checkpoint: to copy.
        path: of the output.
        replaced: the new bytes of tensors, by name, as many as before.
        metadata: are added to those of the checkpoint.
        beside: further files of a folder; ``None`` for a file.

    Raises:
        UsageError: a folder is wanted, and the checkpoint is not one of safetensors files.
        InputRefused: a tensor of another format cannot be copied.
        InputChanged: the checkpoint cannot be read.

    """
    same = checkpoint.format.startswith("safetensors") and not checkpoint.stripped and not checkpoint.ignored
    in_folder = is_folder(checkpoint.path) or is_index(checkpoint.path.name)
    if beside is not None and not (same and in_folder):
        named = f"the output {quoted(str(path))} is a folder, and {quoted(str(checkpoint.path))}"
        raise UsageError(f"{named} is no folder of safetensors files", hint=f"-o {path.name}.safetensors")
    if same and (beside is not None or len(_weights_of(checkpoint)) == 1):
        return _same_files(checkpoint, path, replaced, metadata, beside=beside)
    return _new_file(checkpoint, path, replaced, metadata)


def _weights_of(checkpoint: Checkpoint) -> list[ByteSource]:
    """Return the files with tensors, without the index of a folder."""
    sources = checkpoint.index.sources
    return [source for source in sources if len(sources) == 1 or not is_index(PurePath(source.name).name)]


def _same_files(
    checkpoint: Checkpoint,
    path: Path,
    replaced: Mapping[str, bytes],
    metadata: Mapping[str, str],
    *,
    beside: Sequence[SideFile] | None,
) -> OutputCopy:
    files: list[PlannedFile] = []
    pieces: list[Iterator[tuple[int, memoryview]]] = []
    begin = 0
    for source in _weights_of(checkpoint):
        length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
        data_begin = _LENGTH_BYTES + length
        header = header_with(source.read(_LENGTH_BYTES, length), metadata)
        patches = [
            (extent.offset - data_begin, replaced[extent.layout.name])
            for extent in checkpoint.index
            if isinstance(extent, Extent) and extent.source is source and extent.layout.name in replaced
        ]
        data_bytes = source.size() - data_begin
        name = path.name if beside is None else PurePath(source.name).name
        files.append(PlannedFile(name=name, header=header, begin=begin, data_bytes=data_bytes))
        pieces.append(_patched(source, data_begin, data_bytes, patches, shift=begin))
        begin += data_bytes
    planned = PlannedOutput(
        weighting=_COPY, path=path, files=tuple(files), folder=beside is not None, beside=tuple(beside or ())
    )
    return OutputCopy(planned=planned, pieces=chain.from_iterable(pieces))


def _patched(
    source: ByteSource, begin: int, data_bytes: int, patches: Sequence[tuple[int, bytes]], *, shift: int
) -> Iterator[tuple[int, memoryview]]:
    """Yield the data section of a file with other bytes at some offsets; the pieces are shifted in the output."""
    for start in range(0, data_bytes, _PIECE_BYTES):
        piece = bytearray(min(_PIECE_BYTES, data_bytes - start))
        source.read_into(begin + start, piece)
        end = start + len(piece)
        for offset, new in patches:
            first, last = max(offset, start), min(offset + len(new), end)
            if first < last:
                piece[first - start : last - start] = new[first - offset : last - offset]
        yield shift + start, memoryview(piece)


def _new_file(
    checkpoint: Checkpoint, path: Path, replaced: Mapping[str, bytes], metadata: Mapping[str, str]
) -> OutputCopy:
    if checkpoint.unreadable:
        names = shortlist(quoted(name) for name, _ in checkpoint.unreadable)
        raise InputRefused(f"{quoted(str(checkpoint.path))} has tensors that cannot be copied: {names}")
    extents = {extent.layout.name: extent for extent in checkpoint.index}
    layouts = [
        TensorLayout(name=layout.name, dtype=layout.dtype, shape=layout.shape, strides=None)
        for layout in checkpoint.index.layouts
    ]
    header, ordered = build_header(layouts, {**checkpoint.metadata, **metadata})
    data_bytes = sum(layout.nbytes for layout in ordered)
    tensors = [(extents[layout.name], replaced.get(layout.name)) for layout in ordered]
    file = PlannedFile(name=path.name, header=header, begin=0, data_bytes=data_bytes)
    return OutputCopy(planned=PlannedOutput(weighting=_COPY, path=path, files=(file,)), pieces=_one_by_one(tensors))


def _one_by_one(tensors: Sequence[tuple[Located, bytes | None]]) -> Iterator[tuple[int, memoryview]]:
    """Yield tensors one after the other, some with other bytes."""
    offset = 0
    for extent, new in tensors:
        size = extent.layout.dtype.itemsize
        for start in range(0, extent.layout.elements, _PIECE_BYTES):
            count = min(_PIECE_BYTES, extent.layout.elements - start)
            piece = memoryview(new)[start * size :][: count * size] if new is not None else None
            data = read_block(extent, start, count).data if piece is None else piece
            yield offset, data
            offset += len(data)
