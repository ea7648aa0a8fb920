"""Report schema 1.0. Minor versions add fields, major versions change them; readers ignore what they do not know.

All numbers are raw: bytes, seconds, full float64. What is undefined is ``None``, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """What wrote the report."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How it was called."""

    argv: tuple[str, ...]
    """The command line; empty for a call from Python."""
    options: dict[str, object]
    """Every option with its effective value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One checkpoint, in fold order."""

    path: str
    format: str
    step: int | None
    step_source: str | None
    """``inside: global_step``, ``name`` or ``--steps``."""
    bytes: int
    fingerprint: str
    """Size, modification time in nanoseconds, and a hash of the structure bytes."""
    sha256: str | None
    """Digest of the whole file, if it was asked for."""
    content: str | None = None
    """Digest of the averaged tensors, whatever the format; ``None`` for an input that no average needed."""
    role: str = "checkpoint"
    """``checkpoint``; ``average``: the earlier output that is gone on from; ``again``: the last checkpoint in that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodUsed:
    """How the shares came about."""

    name: str
    decay: float | None
    half_life: float | None
    """As it was given, if it was."""
    per: str | None
    """What one decay means: ``checkpoint`` or ``step``."""
    init: str | None
    one_minus_decay: float | None = None
    warmup: str | None = None
    inv_gamma: float | None = None
    power: float | None = None
    sigma_rel: float | None = None
    shape: str | None = None
    normalize: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsOfWeights:
    """What the shares mean."""

    effective_checkpoints: float
    """1 / sum w_i^2."""
    mean_age: float
    """sum w_i (t_N - t_i)."""
    mean_age_unit: str
    """``step``, ``epoch``, ``token``, ``sample`` or ``checkpoint``."""
    first: float
    last: float
    largest: float
    implied_lr: tuple[float, ...]
    """W_i = sum_(j>=i) w_j, per checkpoint of the average."""
    window_ratio_u: float | None = None
    """Median gap x (1-d), for averages per step."""
    unobserved_mass: float | None = None
    """The part of the average asked for that lies before the first checkpoint."""
    predicted_error: float | None = None
    """Estimated distance to the true per-step EMA, over that from the last checkpoint to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """What an average that goes on from an earlier output is made of."""

    checkpoints: int
    """How many are inside the earlier output."""
    steps: tuple[int, ...] | None
    """Of every checkpoint, those inside first."""
    shares: tuple[float, ...]
    """Of every checkpoint, those inside first; sum 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the output, in file order."""

    name: str
    dtype: str
    """The safetensors name of the element type."""
    shape: tuple[int, ...]
    action: str
    """``averaged`` or ``copied``."""
    norm: float | None
    drift: float | None
    """``||average - last|| / ||last||``."""
    cosine: float | None
    """``cos(average, last)``."""
    tied_to: str | None
    """An earlier tensor that shares its bytes in the last checkpoint."""
    why_copied: str = ""
    """In words; empty for an averaged tensor."""
    stands_for: tuple[str, ...] = ()
    """Names that are tied to it, and not written (``--tied drop``)."""
    spread: float | None = None
    """``sum_i w_i ||theta_i - average||^2``, estimated from the sample of the geometry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of an output that is a folder."""

    name: str
    role: str
    """``weights``; ``index``: tells which file holds which tensor; ``companion``: carried over, not counted."""
    bytes: int
    sha256: str
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A written file, or a folder of files.

    The ``sha256`` of a folder is that of its one file of weights; where there are several, that of the lines that
    ``sha256sum`` prints for the weights and their index in the order of their names.
    """

    path: str
    bytes: int
    """Of the weights and their index."""
    sha256: str
    """As it was read back from the disk."""
    dtype: str
    """The element type asked for: ``same`` or a torch name."""
    modified_ns: int | None = None
    """Time of the last modification when it was written: by it an untouched file is known without reading it."""
    files: tuple[File, ...] = ()
    """Of a folder, in the order of their names; empty where the output is one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """One average of the inputs."""

    method: MethodUsed
    weights: tuple[float, ...]
    """The factor of each input, in fold order: its share, where nothing was continued; sum 1."""
    diagnostics: DiagnosticsOfWeights
    tensors: tuple[Tensor, ...]
    output: Output
    continued: Continued | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the checkpoints and the averages lie to each other."""

    inputs: tuple[int, ...]
    """The positions of the inputs that this is about: those that were read, of more than 128 some at even distances."""
    pairwise_distance: tuple[tuple[float, ...], ...]
    """``||theta_i - theta_j||`` of those inputs."""
    average_distance: tuple[tuple[float, ...] | None, ...]
    """Per average, its distance from each of those inputs."""
    path_2d: tuple[tuple[float, ...], ...]
    """Those inputs in the plane of most variance."""
    averages_2d: tuple[tuple[float, ...] | None, ...]
    """The averages in that plane."""
    explained: tuple[float, ...]
    """The part of the variance along each axis of the plane."""
    step_cosines: tuple[float | None, ...]
    """Cosine between each step from one input to the next and the step after it."""
    sampled_fraction: float
    """The part of all elements that this was measured on; 1 for ``--geometry full``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the run did, as a whole."""

    tensors: int
    parameters: int
    """Elements of the averaged tensors, tied ones once."""
    bytes_read: int
    bytes_written: int
    seconds: float
    fold_seconds: float
    peak_memory_bytes: int | None
    """Resident memory at its highest, where the system tells it."""
    throughput_bytes_per_second: float
    """Bytes read by the fold per second of it."""
    resumed_tensors: int = 0
    """Taken over from an interrupted run, so that nothing was read for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where it ran."""

    python: str
    numpy: str
    torch: str | None
    """``None`` when torch was not needed."""
    safetensors: str
    platform: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything about a run: what was averaged, how, into what, and what came of it."""

    schema_version: str
    tool: Tool
    command: Command
    inputs: tuple[Input, ...]
    averages: tuple[Average, ...]
    summary: Summary
    warnings: tuple[Warned, ...]
    environment: Environment
    geometry: Geometry | None = None
