"""The plan of a run: what will be read, averaged, copied and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from ema_cli.dtypes import DType
from ema_cli.errors import RunWarning
from ema_cli.options.output_options import OutputFormat
from ema_cli.record import record
from ema_cli.records.files import FileRole, Placement, PlannedFile, SideFile
from ema_cli.records.series import Checkpoint, Series
from ema_cli.records.series_evidence import Evidence
from ema_cli.storage.extents import Located, TensorLayout
from ema_cli.storage.locations import Location
from ema_cli.text import plural, quoted, shortlist
from ema_cli.weights.methods import Weighting

ROW_ELEMENTS = 1024
"""Elements that are summed at a time for the statistics of a tensor; every block begins at a multiple of it."""
LARGEST_RUN = 1 << 15
"""Elements of small tensors that are folded together."""


class Action(StrEnum):
    """What happens to a tensor."""

    AVERAGED = "averaged"
    COPIED = "copied"
    CONCATENATED = "concatenated"
    """A factor of a LoRA update (``--lora exact``): those of the checkpoints, each times a number, side by side."""
    SCALED = "scaled"
    """Copied, times a number: the alpha of such an update."""
    RECOMPUTED = "recomputed"
    """A BatchNorm statistic, recomputed on data with the averaged weights."""

    @property
    def combines(self) -> bool:
        """Whether the tensors of several checkpoints contribute."""
        return self in (Action.AVERAGED, Action.CONCATENATED)


@record
class Concatenation:
    """The pieces of a tensor, one after the other along an axis: each is a tensor of a checkpoint times a number."""

    axis: int
    inputs: tuple[int, ...]
    """Positions of the checkpoints, in fold order."""
    factors: tuple[tuple[float, ...], ...]
    """Per average, the number of each input."""


@record
class PlannedTensor:
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    elements: int
    dtype: DType
    """Element type in the output."""
    action: Action
    positions: tuple[int, ...]
    """Position of the tensor in each distinct layout, -1 in layouts without it; see ``Plan.extent``."""
    copied_from: int
    """Position of the checkpoint that a copied tensor is read from."""
    offset: int
    """Byte offset in the data section of the output."""
    tied_to: str | None
    """An earlier tensor with the same bytes in the last checkpoint."""
    pieces: Concatenation | None = None
    """Of a concatenated tensor; one of a scaled tensor."""
    why_copied: str = ""
    """For people; empty for an averaged tensor."""
    stands_for: tuple[str, ...] = ()
    """Tied names that are not written."""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.elements * self.dtype.itemsize


@record
class PlannedOutput:
    """One average and the file or folder that it is written to."""

    weighting: Weighting
    path: Location
    files: tuple[PlannedFile, ...]
    """The safetensors files, in the order of the data section: one, unless the output is a folder."""
    folder: bool = False
    read_back_whole: bool = False
    """Compare the whole output with the disk, not a sample."""
    beside: tuple[SideFile, ...] = ()
    """Other files of the folder: the index of the shards, and side files of the last checkpoint."""
    format: OutputFormat = "safetensors"
    placement: Placement | None = None
    """The files of an output in another format, which has no ``files``."""
    fingerprint: str = ""
    """Hash of every option that decides the bytes; empty for a copy of one checkpoint."""

    @property
    def sizes(self) -> dict[str, int | None]:
        """The files of a folder by name, with their sizes; ``None`` for safetensors, whose header may grow."""
        placed = () if self.placement is None else self.placement.files
        return {
            **dict.fromkeys(file.name for file in self.files),
            **{side.name: side.nbytes for side in self.beside},
            **{file.name: file.nbytes for file in placed},
        }

    @property
    def local(self) -> Path:
        """The path of an output on a disk.

        Raises:
            TypeError: it is in a store.

        """
        if not isinstance(self.path, Path):
            raise TypeError(f"{self.path} is not on a disk")
        return self.path

    @property
    def weight_files(self) -> int:
        """The number of files with weights."""
        placed = self.placement.files if self.placement is not None else ()
        return len(self.files) + sum(file.holds_tensors for file in placed)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and their index; of a copy of a checkpoint all bytes."""
        if self.placement is not None:
            return sum(file.nbytes for file in self.placement.files) + sum(side.nbytes for side in self.beside)
        index = sum(file.nbytes for file in self.beside if file.role is FileRole.INDEX)
        return sum(file.nbytes for file in self.files) + index


@record
class Buffers:
    """The buffers of the fold: memory = ``threads`` x the buffers of one block."""

    threads: int
    block_elements: int
    bytes_per_element: int
    """Of all buffers of one thread."""

    @property
    def total_bytes(self) -> int:
        """Memory of the fold, independent of the model."""
        return self.threads * self.block_elements * self.bytes_per_element


@record
class Plan:
    """Everything that will be read, averaged, copied and written. Made without reading tensor data."""

    series: Series
    outputs: tuple[PlannedOutput, ...]
    tensors: tuple[PlannedTensor, ...]
    """In the order of the output's data section."""
    layout_numbers: tuple[int, ...]
    """Which of the distinct layouts each checkpoint has, in fold order: usually all 0; see ``Plan.extent``."""
    used: tuple[int, ...]
    """Positions of the checkpoints that averaged tensors are read from: those with a share, and the last to compare."""
    data_bytes: int
    """Size of the data section of each output."""
    buffers: Buffers
    warnings: tuple[RunWarning, ...]
    device: str = "cpu"
    """What the fold computes on: ``cpu``, ``cuda``, ``cuda:1``, ..."""
    device_reason: str = ""
    """Why ``--device auto`` chose it; empty if it was named."""
    evidence: Evidence | None = None
    """What a sample of the checkpoints shows, once it was read."""

    def __repr__(self) -> str:
        labels = [output.weighting.method.label for output in self.outputs]
        average = labels[0] if len(labels) == 1 else plural(len(labels), "average")
        outputs = shortlist((quoted(str(output.path)) for output in self.outputs), most=2)
        inputs = f"{plural(len(self.series.folded), 'checkpoint')}, {plural(len(self.tensors), 'tensor')}"
        warnings = plural(len(self.warnings), "warning") if self.warnings else "no warnings"
        return f"<Plan: {average} of {inputs} -> {outputs}; {warnings}>"

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in fold order."""
        return tuple(member.checkpoint for member in self.series.members)

    def readers(self, tensor: PlannedTensor) -> Sequence[int]:
        """Return the positions of the checkpoints that ``tensor`` is read from."""
        if tensor.pieces is not None:
            return tensor.pieces.inputs
        return self.used if tensor.action is Action.AVERAGED else (tensor.copied_from,)

    def contributors(self, tensor: PlannedTensor) -> Sequence[int]:
        """Return the positions of the checkpoints whose digest ``tensor`` is in: none for a copied or scaled tensor."""
        return self.readers(tensor) if tensor.action.combines else ()

    def extent(self, tensor: PlannedTensor, i: int) -> Located:
        """Return where the elements of ``tensor`` are in checkpoint ``i``, one of its ``readers``."""
        return self.series.members[i].checkpoint.index.extent(tensor.positions[self.layout_numbers[i]])

    def layout(self, tensor: PlannedTensor, i: int) -> TensorLayout:
        """Return the layout of ``tensor`` in checkpoint ``i``, one of its ``readers``."""
        return self.series.members[i].checkpoint.index.layouts[tensor.positions[self.layout_numbers[i]]]

    @property
    def read_bytes(self) -> int:
        """Bytes of tensors that are read."""
        total = 0
        alike = Counter(self.layout_numbers[i] for i in self.used)
        layouts = {self.layout_numbers[i]: self.series.members[i].checkpoint.index.layouts for i in self.used}
        for tensor in self.tensors:
            if tensor.action is Action.AVERAGED and tensor.pieces is None:  # of one shape everywhere
                sizes = [layouts[n][tensor.positions[n]].dtype.itemsize * count for n, count in alike.items()]
                total += tensor.elements * sum(sizes)
            else:
                total += sum(self.layout(tensor, i).nbytes for i in self.readers(tensor))
        return total

    @property
    def write_bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(output.nbytes for output in self.outputs)
