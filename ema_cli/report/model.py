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


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodUsed:
    """How the shares came about."""

    name: str
    decay: float | None
    half_life: float | None
    per: str | None
    """What one decay means: ``checkpoint``."""
    init: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsOfWeights:
    """What the shares mean."""

    effective_checkpoints: float
    """1 / sum w_i^2."""
    mean_age: float
    """sum w_i (t_N - t_i)."""
    mean_age_unit: str
    """``step``, ``epoch`` or ``checkpoint``."""
    first: float
    last: float
    largest: float
    implied_lr: tuple[float, ...]
    """W_i = sum_(j>=i) w_j, per input."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A written file."""

    path: str
    bytes: int
    sha256: str
    dtype: str
    """The element type asked for: ``same`` or a torch name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """One average of the inputs."""

    method: MethodUsed
    weights: tuple[float, ...]
    """One share per input, in fold order; sum 1."""
    diagnostics: DiagnosticsOfWeights
    tensors: tuple[Tensor, ...]
    output: Output


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
