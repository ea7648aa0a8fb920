"""The rest of an output with ``--format same``: all bytes outside its averages are those of the last checkpoint.

The last checkpoint says where its tensors are, and the checksums of the records that they are in; nothing of the output
is believed. Files that hold no weights are compared whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PurePath

from ema_cli.errors import EmaAvgError
from ema_cli.events import Counted, Listener
from ema_cli.formats.dcp.chunk_checksums import ChunkChecksums
from ema_cli.formats.dcp.dcp_names import METADATA
from ema_cli.formats.torch.first_bytes import looks_like_zip
from ema_cli.formats.torch.zip_records import ZipRecords
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.record import record
from ema_cli.records.files import Checksum
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Report
from ema_cli.storage.extents import Chain, Extent, Located, Mosaic, TensorLayout, contiguous_strides, span
from ema_cli.storage.locations import open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import plural, quoted, shortlist
from ema_cli.verification.output import Check, WrittenOutput
from ema_cli.verification.samples import PIECE_ELEMENTS, draw_pieces

_PIECE_BYTES = 1 << 22
_HEAD_BYTES = 4
_MOST_FAULTS = 3
Range = tuple[int, int]


@record
class CopyScope:
    """How much is compared."""

    samples: int | None
    """Number of pieces; ``None`` for everything."""
    seed: int


@record
class _Pair:
    """A file of the output, and the one that it is a copy of."""

    name: str
    copy: ByteSource
    original: ByteSource
    equal: tuple[Range, ...]
    """The bytes that must be equal."""


def check_copied_bytes(
    output: WrittenOutput, report: Report, last: Checkpoint, opened: ExitStack, listener: Listener, *, scope: CopyScope
) -> Check:
    """Compare everything in an output that is not averaged with the last checkpoint.

    Raises:
        InputChanged: a file cannot be read to its end.

    """
    replaced = _replaced(report, last)
    try:
        pairs = [*_pairs(output, report, last, replaced, opened)]
        faults = [fault for pair in pairs if (fault := _other_size(pair))]
    except EmaAvgError as error:
        return Check(name="copied", ok=False, message=error.message)
    drawn = [] if faults else [*_drawn(pairs, scope)]
    count = Counted("comparing", 2 * sum(end - begin for _, begin, end in drawn), listener)
    faults += list(dict.fromkeys(fault for one in drawn if (fault := _difference(*one, count))))
    if faults:
        return Check(name="copied", ok=False, message=shortlist(faults, most=_MOST_FAULTS))
    compared = sum(end - begin for _, begin, end in drawn)
    total = sum(end - begin for pair in pairs for begin, end in pair.equal)
    name = quoted(str(last.path))
    if compared < total:
        what = f"{total - compared:,} of {plural(total, 'byte')} that are not averaged"
        return Check(name="copied", ok=True, message=f"{compared:,} of {total:,} equal {name}", unchecked=what)
    return Check(name="copied", ok=True, message=f"{plural(total, 'byte')} that are not averaged equal {name}")


def _replaced(report: Report, last: Checkpoint) -> Mapping[object, list[Range]]:
    """Return the bytes of each file of the last checkpoint that the output has averages or other values in."""
    first = report.command.options.get("buffers") == "first"
    names = {
        tensor.name
        for tensor in report.averages[0].tensors
        if tensor.action != Action.COPIED or (first and is_batch_norm_statistic(tensor.name))
    }
    found: dict[object, list[Range]] = {}
    layouts = last.index.layouts
    has_bytes = [layout.name in names and 0 not in layout.shape for layout in layouts]
    for position in range(len(layouts)):
        for extent in _extents(last.index.extent(position)) if has_bytes[position] else ():
            begin = extent.offset
            found.setdefault(extent.source.identity, []).append((begin, begin + _nbytes(extent.layout)))
    for position, file, begin in last.twins:
        if has_bytes[position]:
            source = last.index.sources[file]
            found.setdefault(source.identity, []).append((begin, begin + _nbytes(layouts[position])))
    return found


def _extents(located: Located) -> Iterable[Extent]:
    """Return the pieces that a tensor consists of."""
    if isinstance(located, Chain):
        return map(located.link, range(len(located.layout.links)))
    return [extent for _, extent in located.tiles] if isinstance(located, Mosaic) else [located]


def _nbytes(layout: TensorLayout) -> int:
    """Return the bytes from the first to the last element of a tensor."""
    strides = contiguous_strides(layout.shape) if layout.strides is None else layout.strides
    return span(layout.shape, strides) * layout.dtype.itemsize


def _pairs(
    output: WrittenOutput, report: Report, last: Checkpoint, replaced: Mapping[object, list[Range]], opened: ExitStack
) -> Iterator[_Pair]:
    files = report.averages[0].output.files
    if not files:
        (copy,), original = output.sources.values(), last.index.sources[0]
        yield _pair(output.path.name, copy, original, replaced, last)
    folder = last.path if last.index.sources and not _is_a_file(last) else last.path.parent
    for file in files:
        copy = output.sources.get(file.name) or opened.enter_context(open_source(output.path / file.name))
        original = opened.enter_context(open_source(folder / file.name))
        yield _pair(file.name, copy, original, replaced, last)


def _is_a_file(checkpoint: Checkpoint) -> bool:
    """Whether the path of a checkpoint is a file in its folder: the only one, or the index of the others."""
    name = checkpoint.path.name
    return name.endswith(".json") or any(PurePath(source.name).name == name for source in checkpoint.index.sources)


def _pair(
    name: str, copy: ByteSource, original: ByteSource, replaced: Mapping[object, list[Range]], last: Checkpoint
) -> _Pair:
    ranges = replaced.get(original.identity, [])
    if ranges:
        find = _checksums_of(original, last)
        checksums = filter(None, (find(begin) for begin, _ in ranges))
        ranges = sorted([*ranges, *((field, field + 4) for one in checksums for field in one.fields)])
    return _Pair(name=name, copy=copy, original=original, equal=tuple(_between(ranges, original.size())))


def _checksums_of(source: ByteSource, last: Checkpoint) -> Callable[[int], Checksum | None]:
    """Return how the checksum of the bytes at an offset of a file of the last checkpoint is found."""
    metadata = next((one for one in last.index.sources if PurePath(one.name).name == METADATA), None)
    if metadata is not None:
        return _checksums_of_dcp(source, last, ChunkChecksums(metadata.read(0, metadata.size())))
    if not looks_like_zip(source.read(0, min(_HEAD_BYTES, source.size()))):
        return lambda _: None
    records = ZipRecords(source)
    return lambda offset: records.at(offset).checksum


def _checksums_of_dcp(source: ByteSource, last: Checkpoint, chunks: ChunkChecksums) -> Callable[[int], Checksum | None]:
    number = next(i for i, one in enumerate(last.index.sources) if one.identity == source.identity)
    table = last.index.checksums(number)

    def find(offset: int) -> Checksum | None:
        known = None if table is None else table.find(offset)
        return chunks.find(PurePath(source.name).name, source, offset, 0 if known is None else known.crc32)

    return find


def _between(ranges: Sequence[Range], size: int) -> Iterator[Range]:
    """Yield what is not in sorted ranges."""
    done = 0
    for begin, end in (*ranges, (size, size)):
        if begin > done:
            yield done, begin
        done = max(done, end)


def _other_size(pair: _Pair) -> str:
    sizes = pair.copy.size(), pair.original.size()
    if sizes[0] == sizes[1]:
        return ""
    return f"{quoted(pair.name)} has {plural(sizes[0], 'byte')}, {quoted(pair.original.name)} {sizes[1]:,}"


def _drawn(pairs: Sequence[_Pair], scope: CopyScope) -> Iterator[tuple[_Pair, int, int]]:
    """Yield the ranges to compare, in pieces."""
    ranges = [(pair, begin, end) for pair in pairs for begin, end in pair.equal]
    if scope.samples is None:
        yield from (
            (pair, start, min(start + _PIECE_BYTES, end))
            for pair, begin, end in ranges
            for start in range(begin, end, _PIECE_BYTES)
        )
        return
    assert PIECE_ELEMENTS <= _PIECE_BYTES  # noqa: S101 - a piece is read at once
    for piece in draw_pieces([end - begin for _, begin, end in ranges], scope.samples, scope.seed):
        pair, begin, _ = ranges[piece.number]
        yield pair, begin + piece.start, begin + piece.start + piece.count


def _difference(pair: _Pair, begin: int, end: int, count: Counted) -> str:
    """Return where a range differs; empty if it does not."""
    found, expected = pair.copy.read(begin, end - begin), pair.original.read(begin, end - begin)
    count.add(2 * (end - begin))
    if found == expected:
        return ""
    at = begin + next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"byte {at:,} of {quoted(pair.name)} is not that of {quoted(pair.original.name)}, and no average"
