"""What will be read, folded, written and copied: the plan of a run, and the weights in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ema_cli.dtypes import DType
from ema_cli.errors import RunWarning
from ema_cli.records.files import FileRole, PlannedFile, SideFile
from ema_cli.records.series import Checkpoint, Series
from ema_cli.storage.locations import Location
from ema_cli.weights.methods import Weighting

ROW_ELEMENTS = 1024
"""Numbers that are summed in one go for the statistics of a tensor; every block begins with such a row."""


class Action(StrEnum):
    """What happens to a tensor."""

    AVERAGED = "averaged"
    COPIED = "copied"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    elements: int
    dtype: DType
    """Of the output."""
    action: Action
    positions: tuple[int, ...]
    """Where the tensor stands in each distinct layout; see ``Plan.layout_numbers``. -1 where one has it not."""
    copied_from: int
    """The checkpoint that a copied tensor is taken from."""
    offset: int
    """Byte offset in the data section of the output."""
    tied_to: str | None
    """An earlier tensor with the same bytes in the last checkpoint."""
    why_copied: str = ""
    """In words; empty for an averaged tensor."""
    stands_for: tuple[str, ...] = ()
    """Names that are tied to it and not written."""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOutput:
    """One average and the file, or the folder, that it is written to."""

    weighting: Weighting
    path: Location
    files: tuple[PlannedFile, ...]
    """The safetensors files, in the order of the data section; one, unless it is a folder."""
    folder: bool = False
    beside: tuple[SideFile, ...] = ()
    """What else goes into the folder: the index of the shards, and what is carried over from the last checkpoint."""

    @property
    def local(self) -> Path:
        """The path of an output on a disk, for what only a disk has.

        Raises:
            TypeError: it is in a store.

        """
        if not isinstance(self.path, Path):
            raise TypeError(f"{self.path} is not on a disk")
        return self.path

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and their index."""
        sides = sum(one.nbytes for one in self.beside if one.role is FileRole.INDEX)
        return sum(one.nbytes for one in self.files) + sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """How the fold is cut up: memory = ``threads`` x the buffers of one block."""

    threads: int
    block_elements: int
    bytes_per_element: int
    """Of all buffers of one thread together."""

    @property
    def total_bytes(self) -> int:
        """Memory that the fold takes, whatever the model."""
        return self.threads * self.block_elements * self.bytes_per_element


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will be read, written and copied. Made without reading tensor data."""

    series: Series
    outputs: tuple[PlannedOutput, ...]
    tensors: tuple[PlannedTensor, ...]
    """In the order of the output's data section."""
    layout_numbers: tuple[int, ...]
    """The number of the layout that each checkpoint has, in fold order: usually all 0."""
    used: tuple[int, ...]
    """The checkpoints that averaged tensors are read from: those with a share, and the last, to compare with."""
    data_bytes: int
    """Size of the data section of each output."""
    read_bytes: int
    buffers: Buffers
    warnings: tuple[RunWarning, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in fold order."""
        return tuple(member.checkpoint for member in self.series.members)

    @property
    def write_bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(output.nbytes for output in self.outputs)
