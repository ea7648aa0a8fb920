"""The tensors of one DCP folder in their places: layouts, byte offsets, files and checksums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ema_cli.dtypes import BY_TORCH_NAME, DType
from ema_cli.errors import InputRefused
from ema_cli.formats.dcp_chunks import Chunks, Located
from ema_cli.formats.dcp_records import Chunk, SavedTensor, Stored
from ema_cli.formats.dcp_window import Window
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import UnreadableTensor, writable_name
from ema_cli.storage.checksums import Record, RecordTable
from ema_cli.storage.extents import Part, TensorLayout
from ema_cli.text import quoted, shortlist


class Placing:
    """What was placed so far. Files are opened when the first chunk in them is.

    Args:
        folder: where the files lie.
        ends: how far each file must reach.
        chunks: locates the elements of a chunk.

    """

    def __init__(self, folder: Folder, ends: Mapping[str, int], chunks: Chunks) -> None:
        self.layouts: list[TensorLayout] = []
        self.offsets: list[int] = []
        self.files: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        self._folder = folder
        self._ends = ends
        self._chunks = chunks
        self._opened: dict[str, int] = {}
        self._records: defaultdict[int, list[Record]] = defaultdict(list)
        self._faults: list[InputRefused] = []

    def add(self, name: str, tensor: SavedTensor) -> None:
        """Place a tensor, or note why that cannot be done."""
        try:
            if not writable_name(name):
                raise InputRefused("has a name that cannot be written")
            dtype = BY_TORCH_NAME.get(tensor.dtype_name)
            if dtype is None:
                raise UnreadableTensor(f"has the element type {quoted(tensor.dtype_name)}, which cannot be averaged")
            self._place(name, tensor, dtype)
        except UnreadableTensor as reason:
            self.unreadable.append((name, reason.message))
        except InputRefused as refused:
            self._faults.append(InputRefused(f"tensor {quoted(name)} {refused.message}", hint=refused.hint))

    def raise_faults(self) -> None:
        """Raise one error for all tensors that could not be placed."""
        if self._faults:
            hint = next((fault.hint for fault in self._faults if fault.hint), "")
            raise InputRefused(shortlist(fault.message for fault in self._faults), hint=hint)

    def checksums(self) -> Mapping[int, RecordTable]:
        """Return what is known of the bytes of the chunks, by file."""
        return {number: RecordTable(records) for number, records in self._records.items()}

    def window(self, stored: Stored) -> Window:
        """Return an item as a source of its own."""
        return Window(self._folder.sources[self._open(stored.file)], stored.offset, stored.length)

    def _place(self, name: str, tensor: SavedTensor, dtype: DType) -> None:
        located = [self._locate(tensor, chunk) for chunk in tensor.chunks]
        strides = located[0].strides if len(located) == 1 else None
        pairs = zip(tensor.chunks, located, strict=True)
        parts = tuple(Part(origin=chunk.origin, shape=chunk.shape, strides=at.strides) for chunk, at in pairs)
        whole = TensorLayout(
            name=name, dtype=dtype, shape=tensor.shape, strides=strides, parts=parts if len(parts) > 1 else ()
        )
        self.layouts.append(whole)
        self.offsets.extend([at.offset for at in located] or [0])  # of nothing, nothing is read
        self.files.extend([self._open(chunk.stored.file) for chunk in tensor.chunks] or [0])
        for chunk, at in zip(tensor.chunks, located, strict=True):
            if at.record is not None:
                self._records[self._open(chunk.stored.file)].append(at.record)

    def _locate(self, tensor: SavedTensor, chunk: Chunk) -> Located:
        try:
            source = self._folder.sources[self._open(chunk.stored.file)]
            return self._chunks.locate(source, tensor, chunk)
        except UnreadableTensor:
            raise
        except InputRefused as refused:
            whole = chunk.shape == tensor.shape
            where = "" if whole else f"in its piece at {list(chunk.origin)} "
            message = f"{where}{refused.message}, in {quoted(chunk.stored.file)}"
            raise InputRefused(message, hint=refused.hint) from refused

    def _open(self, name: str) -> int:
        number = self._opened.get(name)
        if number is None:
            number = self._opened[name] = self._folder.open(name)
            size = self._folder.sources[number].size()
            if size < self._ends[name]:
                raise InputRefused(
                    f"is incomplete: {quoted(name)} has {size:,} bytes and should have {self._ends[name]:,}",
                    hint="was it saved or copied to the end? leave it out, or fetch it again",
                )
        return number
