"""The records that travel through the program: the legend of the data flow. Frozen, and free of I/O.

    Checkpoint -> (ordered) -> Weighting -> Plan -> (folded) -> findings -> Report

What a fold finds is in ``ema_cli.records.fold_results``; the report's own records are in ``ema_cli.report.model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ema_cli.dtypes import DType
from ema_cli.naming import distinct_names
from ema_cli.records.files import FileRole, PlannedFile, SideFile
from ema_cli.storage.extents import TensorIndex
from ema_cli.storage.locations import Location, absolute
from ema_cli.weights.methods import Method
from ema_cli.weights.timeline import Timeline

ROW_ELEMENTS = 1024
"""Numbers that are summed in one go for the statistics of a tensor; every block begins with such a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStep:
    """A position in training, and where it was read."""

    value: int
    unit: str
    """``step`` or ``epoch``."""
    source: str
    """``inside: global_step``, ``name`` or ``--steps``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A warning: a stable code, a sentence, and the way out."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An input that was found and not used."""

    path: Location
    reason: str
    ours: bool = False
    """It is an earlier output of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint whose structure was read. Its tensor data was not."""

    path: Location
    format: str
    """In words, such as ``safetensors`` or ``torch zip``."""
    index: TensorIndex
    key: str
    """Where the weights lie in a nested checkpoint; empty for the top level."""
    stripped: tuple[str, ...]
    """Prefixes that were taken off the names of the tensors."""
    steps: tuple[FoundStep, ...]
    """Steps that stand inside the file, best first."""
    fingerprint: str
    """Size, modification time and a hash of the structure bytes."""
    metadata: dict[str, str]
    """Metadata of a safetensors file."""
    ignored: tuple[str, ...]
    """What else the file holds."""
    notes: tuple[str, ...]
    """What the user should know about the choice of weights."""
    companions: tuple[str, ...] = ()
    """Files of a checkpoint folder that belong to the model and not to the training: configuration, tokenizer."""
    stem: str = "model"
    """What a folder calls its weights, without suffix."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Tensors of the model that have no plain numbers, by name, each with the reason; refused only if wanted."""
    quantized: str = ""
    """How a configuration beside the weights says that they are quantized; empty if it does not."""

    @property
    def ties(self) -> dict[str, str]:
        """Names whose bytes are those of an earlier name, worked out when asked for."""
        return self.index.ties()

    @property
    def made_by_us(self) -> bool:
        """Whether the file is an earlier output of this program."""
        return "ema_avg.version" in self.metadata


class Role(StrEnum):
    """What a member of a series is to the average."""

    CHECKPOINT = "checkpoint"
    AVERAGE = "average"
    """An earlier output that the average goes on from."""
    AGAIN = "again"
    """The last checkpoint inside that output, where the line to the next one begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedCheckpoint:
    """A checkpoint in its place of the series."""

    checkpoint: Checkpoint
    step: FoundStep | None
    """The step that the whole series is described by; ``None`` if it has none."""
    weight: float | None = None
    """Given by hand."""
    role: Role = Role.CHECKPOINT


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A checkpoint inside an average: what the output's metadata say of it."""

    name: str
    """The end of its path, without the suffix, as long as it takes to tell it from the others."""
    step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How an average goes on from an earlier output A: ``scale A + again theta_M + ...``, M checkpoints in A."""

    path: Location
    method: Method
    folded: tuple[Folded, ...]
    """The M checkpoints inside the earlier output, in fold order."""
    scale: float
    """The factor of A."""
    again: float
    """What its last checkpoint gets besides; 0 where a method does not look back."""
    lacking: frozenset[str] = frozenset()
    """Tensors that were copied into the earlier output, as not every checkpoint inside has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is folded, in fold order, oldest first."""

    members: tuple[OrderedCheckpoint, ...]
    reason: str
    """Why they are in this order, in words."""
    unit: str
    """Of the steps: ``step``, ``epoch``, ``token`` or ``sample``."""
    left_out: tuple[LeftOut, ...]
    notices: tuple[Notice, ...]
    continuation: Continuation | None = None

    @property
    def folded(self) -> tuple[Folded, ...]:
        """All checkpoints of the average, those inside an earlier output included."""
        fresh = [member for member in self.members if member.role is Role.CHECKPOINT]
        inside = self.continuation.folded if self.continuation else ()
        names = distinct_names(
            [absolute(member.checkpoint.path) for member in fresh], taken=[one.name for one in inside]
        )
        new = [Folded(name=name, step=m.step.value if m.step else None) for name, m in zip(names, fresh, strict=True)]
        return (*inside, *new)

    @property
    def nothing_new(self) -> bool:
        """Whether there is nothing but an earlier average."""
        return all(member.role is Role.AVERAGE for member in self.members)

    @property
    def timeline(self) -> Timeline:
        """Where the checkpoints of the average stand in training."""
        weights = [member.weight for member in self.members if member.weight is not None]
        return Timeline.of([one.step for one in self.folded], self.unit, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """A method applied to a series."""

    method: Method
    weights: tuple[float, ...]
    """The factor of each member of the series, in fold order."""
    shares: tuple[float, ...]
    """The weight of each checkpoint of the average, float64, all >= 0, sum 1; the same unless it was continued."""


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
    notices: tuple[Notice, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in fold order."""
        return tuple(member.checkpoint for member in self.series.members)

    @property
    def write_bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was verified, and what was found."""

    name: str
    """``report``, ``size``, ``sha256``, ``tensors``, ``input 1`` and so on, or ``samples``."""
    ok: bool
    message: str
    """What is there; what was expected besides, if that is something else."""
