"""The records of a series: checkpoints, their order, and a previous average that is continued. Frozen, no I/O.

    Checkpoint -> OrderedCheckpoint -> Series -> Weighting -> Plan -> FoldOutcome -> Report

The results of a fold are in ``ema_cli.records.fold_results``, the records of the report in ``ema_cli.report.model``.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from ema_cli.errors import RunWarning
from ema_cli.naming import distinct_names
from ema_cli.record import record
from ema_cli.records.live_snapshot import SNAPSHOT_KEY
from ema_cli.storage.extents import TensorIndex
from ema_cli.storage.locations import Location, absolute
from ema_cli.text import plural, quoted
from ema_cli.weights.methods import Method
from ema_cli.weights.timeline import Timeline


@record
class FoundStep:
    """A position in training, and where it was read."""

    value: int
    unit: str
    """``step`` or ``epoch``."""
    source: str
    """``inside: global_step``, ``name`` or ``--steps``."""


@record
class Skipped:
    """An input that was found and is not used."""

    path: Location
    reason: str
    made_by_us: bool = False
    """It is an output of this program."""


class Mark(StrEnum):
    """What the report beside a checkpoint says of it; see ``ema_cli.formats.own_outputs``."""

    NONE = ""
    OURS = "ours"
    """It is an output in a format without metadata of this program."""
    CHANGED = "changed"
    """It has the name of such an output, and other bytes: it is a checkpoint like others."""


@record
class Checkpoint:
    """A checkpoint whose structure was read, but not its tensor data."""

    path: Location
    format: str
    """For people: ``safetensors``, ``torch zip`` and the like."""
    index: TensorIndex
    key: str
    """Dotted path to the weights in a nested checkpoint; empty for the top level."""
    stripped: tuple[str, ...]
    """Prefixes that were stripped from the names of the tensors."""
    steps: tuple[FoundStep, ...]
    """Steps stored inside the file, best first."""
    fingerprint: str
    """Size, modification time and a hash of the structure bytes."""
    metadata: dict[str, str]
    """Metadata of a safetensors file."""
    ignored: tuple[str, ...]
    """Everything else in the file."""
    warnings: tuple[str, ...]
    """Warnings about the choice of weights."""
    choice: tuple[str, ...] = ()
    """Which weights were taken, and what else there is, in words."""
    second_copy: str = ""
    """Where the checkpoint holds the same weights once more, which a trainer may load instead; empty if nowhere."""
    twins: tuple[tuple[int, int, int], ...] = ()
    """More places of tensors, which other ranks have stored too: number of the tensor, number of the file, byte."""
    dropped: tuple[RunWarning, ...] = ()
    """Warnings about trained numbers of the checkpoint that are not among its tensors."""
    paths: tuple[tuple[str, ...], ...] = ()
    """Of each tensor of a DCP folder, its path in the nested state dict that was saved; empty for other formats."""
    side_files: tuple[str, ...] = ()
    """Files of a checkpoint folder that belong to the model, not to the training: configuration, tokenizer."""
    stem: str = "model"
    """File name of the weights in a folder, without suffix."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Tensors that have no plain numbers: name and reason; refused only if they are wanted."""
    quantized: str = ""
    """Why a configuration beside the weights means that they are quantized; empty if it does not."""
    mark: Mark = Mark.NONE
    """What the report beside it says, once that was read."""

    def __repr__(self) -> str:
        place = f"weights under {quoted(self.key)}, " if self.key else ""
        return f"<Checkpoint {quoted(str(self.path))}: {self.format}, {place}{plural(len(self.index), 'tensor')}>"

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything about the choice of the weights: what was taken, what is dropped, and warnings."""
        return (*self.choice, *(warning.message for warning in self.dropped), *self.warnings)

    @property
    def ties(self) -> dict[str, str]:
        """``{name: first name}`` of tensors with the same bytes, computed on demand."""
        return self.index.ties()

    @property
    def made_by_us(self) -> bool:
        """Whether the file is an output of this program."""
        return self.mark is Mark.OURS or self.has_our_metadata

    @property
    def has_our_metadata(self) -> bool:
        """Whether the file has the metadata of an output of this program."""
        return "ema_avg.version" in self.metadata

    @property
    def is_snapshot(self) -> bool:
        """Whether the file is a snapshot of a live EMA: a checkpoint of a series, and no output."""
        return SNAPSHOT_KEY in self.metadata


class Role(StrEnum):
    """The role of a member of a series."""

    CHECKPOINT = "checkpoint"
    AVERAGE = "average"
    """The previous average, which is continued."""
    PREVIOUS_LAST = "again"
    """The last checkpoint inside the previous average, read again because the line to the next one begins there."""


@record
class OrderedCheckpoint:
    """A checkpoint with its step in the series."""

    checkpoint: Checkpoint
    step: FoundStep | None
    """From the one source of steps of the whole series; ``None`` if there is none."""
    weight: float | None = None
    """Given by the user."""
    role: Role = Role.CHECKPOINT


@record
class Folded:
    """A checkpoint inside an average, as the output's metadata list it."""

    name: str
    """The end of its path without suffix, long enough to be unique."""
    step: int | None


@record
class Continuation:
    """How a previous average A of M checkpoints is continued: ``scale A + last_factor theta_M + ...``."""

    path: Location
    method: Method
    folded: tuple[Folded, ...]
    """The M checkpoints inside the previous average, in fold order."""
    scale: float
    """The factor of A."""
    last_factor: float
    """The additional factor of its last checkpoint; 0 for methods that do not need it."""
    lacking: frozenset[str] = frozenset()
    """Tensors that were copied into the previous average, because some checkpoint inside lacks them."""
    from_snapshot: bool = False
    """The first checkpoint inside is a snapshot of a live EMA."""


@record
class Series:
    """What is folded, in fold order, oldest first."""

    members: tuple[OrderedCheckpoint, ...]
    reason: str
    """Why they are in this order, for people."""
    unit: str
    """Unit of the steps: ``step``, ``epoch``, ``token`` or ``sample``."""
    found: tuple[Checkpoint, ...]
    """Every checkpoint that was found, selected or not: no output may overwrite one."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[RunWarning, ...]
    continuation: Continuation | None = None

    @property
    def folded(self) -> tuple[Folded, ...]:
        """All checkpoints of the average, including those inside a previous one."""
        inside, paths = self._inside, [absolute(member.checkpoint.path) for member in self._fresh]
        names = distinct_names(paths, taken=[known.name for known in inside])
        new = [Folded(name=name, step=step) for name, step in zip(names, self._fresh_steps, strict=True)]
        return (*inside, *new)

    @property
    def _inside(self) -> tuple[Folded, ...]:
        """The checkpoints inside a previous average."""
        return self.continuation.folded if self.continuation else ()

    @property
    def _fresh(self) -> list[OrderedCheckpoint]:
        return [member for member in self.members if member.role is Role.CHECKPOINT]

    @property
    def _fresh_steps(self) -> list[int | None]:
        return [member.step.value if member.step else None for member in self._fresh]

    @property
    def nothing_new(self) -> bool:
        """Whether the previous average is the only member."""
        return all(member.role is Role.AVERAGE for member in self.members)

    @property
    def timeline(self) -> Timeline:
        """The steps of the checkpoints of the average."""
        weights = [member.weight for member in self.members if member.weight is not None]
        timeline = Timeline.of([*(one.step for one in self._inside), *self._fresh_steps], self.unit, weights)
        return replace(timeline, after_live=self.continuation is not None and self.continuation.from_snapshot)
