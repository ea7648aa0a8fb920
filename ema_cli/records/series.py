"""The records that travel through the program: the legend of the data flow. Frozen, and free of I/O.

    Checkpoint -> (ordered) -> Weighting -> Plan -> (folded) -> findings -> Report

What a fold finds is in ``ema_cli.records.fold_results``; the report's own records are in ``ema_cli.report.model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ema_cli.errors import RunWarning
from ema_cli.naming import distinct_names
from ema_cli.storage.extents import TensorIndex
from ema_cli.storage.locations import Location, absolute
from ema_cli.weights.methods import Method
from ema_cli.weights.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStep:
    """A position in training, and where it was read."""

    value: int
    unit: str
    """``step`` or ``epoch``."""
    source: str
    """``inside: global_step``, ``name`` or ``--steps``."""


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
    warnings: tuple[RunWarning, ...]
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
