"""What a fold measures besides the tensors: statistics per tensor, distances between checkpoints, checksums."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.record import record


@record
class TensorStatistics:
    """How an average differs from the last checkpoint, computed from the float64 values before rounding.

    ``None`` where undefined: a copied tensor, a tensor that is not finite, the drift from a zero tensor, the cosine of
    a zero tensor or of two tensors with norms too far apart for float64.
    """

    finite: bool = True
    """Whether all numbers of the average are finite; its norm can overflow even then."""
    kept: bool = False
    """Whether it is a constant, equal in all checkpoints of the average, that was written as it is stored because its
    sum would be NaN, infinite, or rounded to another number."""
    norm: float | None
    """Euclidean norm of the average."""
    drift: float | None
    """``||average - last|| / ||last||``."""
    cosine: float | None
    """``cos(average, last)``."""
    spread: float | None = None
    """``sum_i w_i ||theta_i - average||^2``, over the elements that the geometry is measured on."""


@record
class RunGeometry:
    """Distances between the checkpoints of a run and its averages; see ``ema_cli.fold.geometry.trajectory``."""

    inputs: tuple[int, ...]
    """Positions of the inputs measured: those that were read; at most 128, evenly chosen."""
    pairwise_distance: tuple[tuple[float, ...], ...]
    """``||theta_i - theta_j||`` of those inputs."""
    average_distance: tuple[tuple[float, ...] | None, ...]
    """Per average, its distance from each of those inputs; ``None`` where the weights do not sum to one."""
    path_2d: tuple[tuple[float, ...], ...]
    """Those inputs in the plane of most variance (principal components)."""
    averages_2d: tuple[tuple[float, ...] | None, ...]
    """The averages in that plane."""
    explained: tuple[float, ...]
    """The part of the variance that each axis of the plane explains."""
    step_cosines: tuple[float | None, ...]
    """Cosine between each step from one input to the next and the step after it."""
    sampled_fraction: float
    """The part of all elements that was measured; 1 for a small model, which is measured whole."""


@record
class TensorOutcome:
    """Everything a fold computes for one tensor, so that a resumed run need not fold it again."""

    number: int
    """Position of the tensor in the plan."""
    written_crc32: tuple[int, ...]
    """Per average, CRC-32 of the tensor's bytes in the output."""
    read_crc32: tuple[int, ...]
    """CRC-32 of the tensor's bytes in each checkpoint that contributes to it; empty for a copied tensor."""
    statistics: tuple[TensorStatistics, ...]
    """Per average, without the spread."""
    sample: bytes
    """The elements that the geometry is measured on; see ``ema_cli.fold.geometry.sample``."""


@record
class TensorPart:
    """What a fold computes for some blocks of a tensor, one after the other; other processes fold its other blocks."""

    number: int
    """Position of the tensor in the plan."""
    first: int
    """Position of the first block in the tensor."""
    stop: int
    """Position after the last."""
    crcs: tuple[int, ...]
    """CRC-32 of the blocks in each checkpoint that contributes to the tensor, then in each output."""
    lengths: tuple[int, ...]
    """Bytes of the blocks there."""
    sums: tuple[tuple[float, ...], ...]
    """Per average, the sums of each block; empty for a copied tensor."""
    nonfinite: tuple[bool, ...]
    """Per average, whether it has NaN or infinity in these blocks."""
    kept: tuple[bool, ...]
    """Per average, whether a block of a constant tensor is not what its sum would be."""
    sample: bytes
    """As in ``TensorOutcome``, with zeros for the elements of other blocks."""


@record
class RecordPart:
    """Bytes of an archive's record that were read; other processes read the others."""

    checkpoint: int
    """Position of the checkpoint."""
    file: int
    """Number of the file in the checkpoint."""
    offset: int
    """Of the record in the file, in bytes."""
    begin: int
    """Of the bytes in the file."""
    length: int
    crc32: int


@record
class FoldPart:
    """What a process has folded of a run that several processes share."""

    outcomes: tuple[TensorOutcome, ...]
    """Of the tensors that it folded whole."""
    parts: tuple[TensorPart, ...]
    records: tuple[RecordPart, ...]
    """Of the records that it read in part."""


@record
class FoldOutcome:
    """What a fold measures, besides the tensors that it writes."""

    contents: Mapping[int, str]
    """By position of each checkpoint that was read: digest of its averaged tensors; see
    ``ema_cli.fold.content_digests``."""
    statistics: tuple[tuple[TensorStatistics, ...], ...]
    """Per average and tensor."""
    geometry: RunGeometry | None
