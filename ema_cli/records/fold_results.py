"""What a fold leaves behind, beside the tensors: how they moved, and where the checkpoints lie to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """How an average differs from the last checkpoint, from the float64 values before rounding.

    ``None`` where undefined: a copied tensor, a tensor that is not finite, the drift from a zero tensor, the cosine of
    a zero tensor or of two whose norms are further apart than float64 can tell.
    """

    finite: bool = True
    """Whether all of its numbers are; a norm can be too large where they are not."""
    norm: float | None
    """Euclidean norm of the average."""
    drift: float | None
    """``||average - last|| / ||last||``."""
    cosine: float | None
    """``cos(average, last)``."""
    spread: float | None = None
    """``sum_i w_i ||theta_i - average||^2``, of the elements that the geometry is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGeometry:
    """Where the checkpoints of a run, and its averages, lie to each other; see ``ema_cli.fold.geometry.trajectory``."""

    inputs: tuple[int, ...]
    """The positions of the inputs that this is about: those that were read."""
    pairwise_distance: tuple[tuple[float, ...], ...]
    """``||theta_i - theta_j||``."""
    average_distance: tuple[tuple[float, ...] | None, ...]
    """Per average, its distance from each of the inputs; ``None`` where weights do not sum to one."""
    path_2d: tuple[tuple[float, ...], ...]
    """The inputs in the plane of most variance (principal components)."""
    averages_2d: tuple[tuple[float, float] | None, ...]
    """The averages in that plane."""
    explained: tuple[float, float]
    """The part of the variance that each axis of the plane explains."""
    step_cosines: tuple[float | None, ...]
    """Cosine between each step from one input to the next and the step after it."""
    sampled_fraction: float
    """The part of all elements that this was measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorOutcome:
    """All that a fold leaves behind of one tensor, so that a later run need not fold it again."""

    number: int
    """Position of the tensor in the plan."""
    written_crc32: tuple[int, ...]
    """Per average, of its bytes in the output."""
    read_crc32: tuple[int, ...]
    """Per checkpoint in use, of its bytes there; empty for a copied tensor."""
    statistics: tuple[TensorStatistics, ...]
    """Per average, without the spread."""
    sample: bytes
    """What the geometry took of it; see ``ema_cli.fold.geometry.observer``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldOutcome:
    """What a fold leaves behind, beside the tensors."""

    contents: Mapping[int, str]
    """Of each checkpoint that was read, a digest of its averaged tensors; see ``ema_cli.fold.content_digests``."""

    statistics: tuple[tuple[TensorStatistics, ...], ...]
    """Per average and tensor."""
    geometry: RunGeometry | None
