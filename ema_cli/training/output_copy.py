"""A copy of a checkpoint in which only the bytes of some tensors are replaced; everything else keeps its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ema_cli.errors import InputRefused
from ema_cli.formats.safetensors import build_header, header_with
from ema_cli.records.files import PlannedFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Extent, Located, TensorLayout
from ema_cli.storage.source import ByteSource
from ema_cli.storage.strided_read import read_block
from ema_cli.text import quoted, shortlist
from ema_cli.weights.methods import Method, Weighting

_PIECE_BYTES = 1 << 22
_LENGTH_BYTES = 8
"""Of the length of a safetensors header."""
_COPY = Weighting(method=Method(name="uniform"), weights=(1.0,), shares=(1.0,))
"""A copy is the mean of one checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCopy:
    """An output that is to be written, and the pieces of its data section."""

    planned: PlannedOutput
    pieces: Iterator[tuple[int, memoryview]]
    """Consecutive pieces: offset in the data section of the output, and bytes."""


def copy_of(
    checkpoint: Checkpoint, path: Path, replaced: Mapping[str, bytes], metadata: Mapping[str, str]
) -> OutputCopy:
    """Return the copy of an open checkpoint.

    A safetensors file is copied byte by byte, its tensors in their order. If the names of its tensors have prefixes of
    wrappers, or it has another format, its weights are copied into a new file.

    Args:
        checkpoint: to copy.
        path: of the output.
        replaced: the new bytes of tensors, by name, as many as before.
        metadata: are added to those of the checkpoint.

    Raises:
        InputRefused: a tensor of another format cannot be copied.
        InputChanged: the checkpoint cannot be read.

    """
    if checkpoint.format == "safetensors" and not checkpoint.stripped and not checkpoint.ignored:
        (source,) = checkpoint.index.sources
        return _same_file(source, checkpoint, path, replaced, metadata)
    return _new_file(checkpoint, path, replaced, metadata)


def empty_copy(path: Path) -> PlannedOutput:
    """Return an output of this name without content, for the checks before it is known."""
    return _planned(path, b"", 0)


def _same_file(
    source: ByteSource, checkpoint: Checkpoint, path: Path, replaced: Mapping[str, bytes], metadata: Mapping[str, str]
) -> OutputCopy:
    length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    begin = _LENGTH_BYTES + length
    header = header_with(source.read(_LENGTH_BYTES, length), metadata)
    patches = [
        (extent.offset - begin, replaced[extent.layout.name])
        for extent in checkpoint.index
        if extent.layout.name in replaced and isinstance(extent, Extent)
    ]
    data_bytes = source.size() - begin
    return OutputCopy(planned=_planned(path, header, data_bytes), pieces=_patched(source, begin, data_bytes, patches))


def _patched(
    source: ByteSource, begin: int, data_bytes: int, patches: Sequence[tuple[int, bytes]]
) -> Iterator[tuple[int, memoryview]]:
    """Yield the data section of a file with other bytes at some offsets."""
    for start in range(0, data_bytes, _PIECE_BYTES):
        piece = bytearray(min(_PIECE_BYTES, data_bytes - start))
        source.read_into(begin + start, piece)
        end = start + len(piece)
        for offset, new in patches:
            first, last = max(offset, start), min(offset + len(new), end)
            if first < last:
                piece[first - start : last - start] = new[first - offset : last - offset]
        yield start, memoryview(piece)


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
    return OutputCopy(planned=_planned(path, header, data_bytes), pieces=_one_by_one(tensors))


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


def _planned(path: Path, header: bytes, data_bytes: int) -> PlannedOutput:
    file = PlannedFile(name=PurePath(path).name, header=header, begin=0, data_bytes=data_bytes)
    return PlannedOutput(weighting=_COPY, path=path, files=(file,))
