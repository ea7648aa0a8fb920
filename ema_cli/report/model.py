"""Report schema 1.6. Minor versions add fields, major versions change them; readers ignore unknown fields.

All numbers are raw: bytes, seconds, full float64. An undefined number is ``None``, never NaN.
"""

from __future__ import annotations

from ema_cli.errors import RunWarning
from ema_cli.options.config_used import ConfigUsed
from ema_cli.record import record
from ema_cli.records.fold_results import RunGeometry
from ema_cli.records.ranks import RankShare
from ema_cli.records.reported_output import Output
from ema_cli.records.series_evidence import Evidence
from ema_cli.weights.diagnostics import Diagnostics

SCHEMA_VERSION = "1.6"


@record
class Tool:
    """The program that wrote the report."""

    name: str
    version: str


@record
class Command:
    """How the program was called."""

    argv: tuple[str, ...]
    """The command line; empty for a call from Python."""
    options: dict[str, object]
    """Every option with its effective value."""
    config: ConfigUsed | None = None
    """The configuration file, and which options it set; ``None`` if there is none. Since 1.2."""
    secrets_removed: bool = False
    """Whether passwords, signatures or tokens were removed from the report or index: paths with ``***`` are not whole.
    Since 1.2."""


@record
class Input:
    """One input, in fold order."""

    path: str
    """As given: relative to the working directory of the run, absolute, or a URL."""
    format: str
    step: int | None
    step_source: str | None
    """``inside: global_step``, ``name`` or ``--steps``."""
    bytes: int
    fingerprint: str
    """Size, modification time in nanoseconds, and a hash of the structure bytes."""
    sha256: str | None
    """Digest of the whole file, if requested (``--sha256``)."""
    content: str | None = None
    """Digest of the averaged tensors, independent of the format; ``None`` for an input that no average needed."""
    role: str = "checkpoint"
    """``checkpoint``; ``average``: the previous average, continued; ``again``: the last checkpoint inside it."""
    key: str = ""
    """Dotted path to the weights in a nested checkpoint; empty for the top level."""
    notes: tuple[str, ...] = ()
    """What else the checkpoint has: averages of the trainer, other weights, and what is not in the output."""
    path_from_output: str | None = None
    """Relative to the folder of the output, of several the first; ``None`` unless both are on one disk. Since 1.4."""


@record
class MethodUsed:
    """The averaging method with its parameters; ``None`` for a parameter that the method does not have."""

    name: str
    decay: float | None
    half_life: float | None
    """Set if the decay was given as a half-life."""
    per: str | None
    """What the decay applies to: ``checkpoint`` or ``step``."""
    init: str | None
    one_minus_decay: float | None = None
    warmup: str | None = None
    inv_gamma: float | None = None
    power: float | None = None
    sigma_rel: float | None = None
    shape: str | None = None
    normalize: bool | None = None


@record
class Continued:
    """All checkpoints of an average that continues a previous average."""

    checkpoints: int
    """Number of checkpoints inside the previous average."""
    steps: tuple[int, ...] | None
    """Step of each checkpoint, those inside first; ``None`` if some have no step."""
    shares: tuple[float, ...]
    """Share of each checkpoint, those inside first; sum 1."""


@record
class TensorPieces:
    """What a tensor consists of: tensors of the inputs, each times a number, one after the other along an axis."""

    axis: int
    inputs: tuple[int, ...]
    """Numbers of the inputs, from 0, in order."""
    factors: tuple[float, ...]
    """The number that each is multiplied by, in float64, before the product is rounded."""


@record
class Tensor:
    """One tensor of the output, in file order."""

    name: str
    dtype: str
    """The safetensors name of the element type."""
    shape: tuple[int, ...]
    action: str
    """``averaged`` or ``copied``; ``concatenated`` (a factor of a LoRA update) or ``scaled`` (its alpha); since 1.3
    ``recomputed``, a BatchNorm statistic."""
    norm: float | None
    drift: float | None
    """``||average - last|| / ||last||``."""
    cosine: float | None
    """``cos(average, last)``."""
    tied_to: str | None
    """An earlier tensor that shares its bytes in the last checkpoint."""
    why_copied: str = ""
    """The reason in words; empty for an averaged tensor."""
    stands_for: tuple[str, ...] = ()
    """Names tied to this tensor and not written (``--tied drop``)."""
    kept: bool = False
    """Whether it is equal in all checkpoints of the average and was written as it is stored, because its sum would be
    NaN, infinite, or rounded to another number."""
    pieces: TensorPieces | None = None
    """Of a concatenated or scaled tensor."""
    spread: float | None = None
    """``sum_i w_i ||theta_i - average||^2``, estimated from the sample of the geometry."""


@record
class Average:
    """One average of the inputs."""

    method: MethodUsed
    weights: tuple[float, ...]
    """The factor of each input, in fold order; unless a previous average was continued, its share, with sum 1."""
    diagnostics: Diagnostics
    tensors: tuple[Tensor, ...]
    output: Output
    continued: Continued | None = None


@record
class Summary:
    """Totals of the run."""

    tensors: int
    parameters: int
    """Elements of the averaged tensors; tied tensors count once."""
    bytes_read: int
    bytes_written: int
    seconds: float
    fold_seconds: float
    peak_memory_bytes: int | None
    """Highest resident memory; ``None`` if the system does not report it."""
    throughput_bytes_per_second: float
    """``bytes_read / fold_seconds``."""
    resumed_tensors: int = 0
    """Tensors completed by an interrupted run, not read again."""


@record
class Environment:
    """Versions and platform of the run."""

    python: str
    numpy: str
    torch: str | None
    """``None`` if torch was not imported."""
    safetensors: str
    platform: str
    device: str
    device_reason: str | None = None
    """Why ``--device auto`` chose it; ``None`` if it was named. Since 1.5."""
    lane: str | None = None
    """What the fold on the CPU used: the kernel compiled for ``avx512``, ``avx2``, ``neon`` or ``baseline``, or
    ``numpy``. The bytes are the same. ``None`` if nothing was folded on the CPU. Since 1.5."""
    ranks: tuple[RankShare, ...] = ()
    """The processes that averaged together, under torchrun or srun; empty if there was one. Since 1.6."""


@record
class StatisticChange:
    """How a statistic of a BatchNorm layer changed; ``None`` for a number that is not finite. Since 1.3."""

    norm_before: float | None
    """Euclidean norm of the statistic in the input."""
    norm_after: float | None
    largest_change: float | None
    """The largest absolute difference of an element."""


@record
class BatchNormLayer:
    """A BatchNorm layer with running statistics. Since 1.3."""

    name: str
    """Name of the module; empty for the model itself."""
    kind: str
    """Class of the module: ``BatchNorm2d`` and the like."""
    channels: int
    momentum: float | None
    """The module's own, which the pass over the data does not use; ``None`` for a cumulative average."""
    batches: int
    """Batches in the new statistics; 0 if the layer saw none and keeps those of the input."""
    mean: StatisticChange
    variance: StatisticChange


@record
class BatchNormUpdate:
    """BatchNorm statistics recomputed on data (``ema-avg update-bn``). Since 1.3."""

    model: str
    """Where the model came from: ``pkg.mod:build``; its class if it was given in Python."""
    data: str
    """Where the data came from, likewise."""
    device: str | None
    """Where the model ran; ``None`` if it was left where it was."""
    batches: int
    samples: int | None
    """Sum of the first dimensions of the batches; ``None`` if a batch has none."""
    layers: tuple[BatchNormLayer, ...]


@record
class Report:
    """Everything about a run: inputs, methods, outputs, diagnostics and warnings."""

    schema_version: str
    tool: Tool
    command: Command
    inputs: tuple[Input, ...]
    averages: tuple[Average, ...]
    summary: Summary
    warnings: tuple[RunWarning, ...]
    environment: Environment
    geometry: RunGeometry | None = None
    evidence: Evidence | None = None
    """What a sample of the checkpoints showed before the fold; ``None`` with ``--no-probe``. Since 1.1."""
    batch_norm: BatchNormUpdate | None = None
    """What ``ema-avg update-bn`` recomputed; ``None`` in the report of an average. Since 1.3."""
