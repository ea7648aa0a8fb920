"""The tensors of one DCP folder, located in its files: layouts, byte offsets, files and checksums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ema_cli.dtypes import BY_TORCH_NAME, DType
from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.chunks import ChunkReader, LocatedChunk, kind
from ema_cli.formats.dcp.data_files import DataFiles
from ema_cli.formats.dcp.saved_items import Chunk, SavedTensor
from ema_cli.formats.structure import UnreadableTensor, writable_name
from ema_cli.storage.checksums import Record, RecordTable
from ema_cli.storage.extents import Part, TensorLayout
from ema_cli.text import quoted, shortlist


class Placing:
    """The tensors that were located so far."""

    def __init__(self, files: DataFiles, chunks: ChunkReader) -> None:
        self.layouts: list[TensorLayout] = []
        self.offsets: list[int] = []
        self.files: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        self._files = files
        self._chunks = chunks
        self._records: defaultdict[int, list[Record]] = defaultdict(list)
        self._faults: list[InputRefused] = []

    def announce(self, tensors: Iterable[SavedTensor]) -> None:
        """Parse one chunk of each form, and announce to the files what will be read of the others, all at a time."""
        pairs = [(tensor, chunk) for tensor in tensors for chunk in tensor.chunks]
        for tensor, chunk in {kind(*pair): pair for pair in pairs}.values():
            with suppress(InputRefused):  # reported when its tensor is added
                self._chunks.locate(self._files.source(chunk.stored.file), tensor, chunk)
        for tensor, chunk in pairs:
            self._chunks.announce(self._files.source(chunk.stored.file), tensor, chunk)

    def add(self, name: str, tensor: SavedTensor) -> None:
        """Locate a tensor, or record the reason why that fails."""
        try:
            if not writable_name(name):
                raise InputRefused("has a name that cannot be written")
            dtype = BY_TORCH_NAME.get(tensor.dtype_name)
            if dtype is None:
                raise UnreadableTensor(f"has the element type {quoted(tensor.dtype_name)}, which cannot be averaged")
            self._add(name, tensor, dtype)
        except UnreadableTensor as reason:
            self.unreadable.append((name, reason.message))
        except InputRefused as refused:
            self._faults.append(InputRefused(f"tensor {quoted(name)} {refused.message}", hint=refused.hint))

    def raise_faults(self) -> None:
        """Raise one error for all tensors that could not be located."""
        if self._faults:
            hint = next((fault.hint for fault in self._faults if fault.hint), "")
            raise InputRefused(shortlist(fault.message for fault in self._faults), hint=hint)

    def checksums(self) -> Mapping[int, RecordTable]:
        """Return the checksums of the chunks, by file."""
        return {number: RecordTable(records) for number, records in self._records.items()}

    def _add(self, name: str, tensor: SavedTensor, dtype: DType) -> None:
        located = [self._locate(tensor, chunk) for chunk in tensor.chunks]
        strides = located[0].strides if len(located) == 1 else None
        pairs = zip(tensor.chunks, located, strict=True)
        parts = tuple(Part(origin=chunk.origin, shape=chunk.shape, strides=at.strides) for chunk, at in pairs)
        whole = TensorLayout(
            name=name, dtype=dtype, shape=tensor.shape, strides=strides, parts=parts if len(parts) > 1 else ()
        )
        self.layouts.append(whole)
        self.offsets.extend([at.offset for at in located] or [0])  # nothing is read of a tensor without elements
        self.files.extend([self._files.number(chunk.stored.file) for chunk in tensor.chunks] or [0])
        for chunk, at in zip(tensor.chunks, located, strict=True):
            if at.record is not None:
                self._records[self._files.number(chunk.stored.file)].append(at.record)

    def _locate(self, tensor: SavedTensor, chunk: Chunk) -> LocatedChunk:
        try:
            return self._chunks.locate(self._files.source(chunk.stored.file), tensor, chunk)
        except UnreadableTensor:
            raise
        except InputRefused as refused:
            whole = chunk.shape == tensor.shape
            where = "" if whole else f"in its piece at {list(chunk.origin)} "
            message = f"{where}{refused.message}, in {quoted(chunk.stored.file)}"
            raise InputRefused(message, hint=refused.hint) from refused
