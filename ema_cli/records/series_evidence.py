"""What a small sample of every checkpoint shows before the fold: whether they are one series, in this order."""

from __future__ import annotations

from ema_cli.record import record

LEAST_ELEMENTS = 2048
"""Sampled elements, below which a model is too small for a verdict."""
LEAST_FOR_ORDER = 5
"""Checkpoints, below which chance makes an order look shorter than another."""
LONGER = 1.2
"""An order is doubtful if its path is longer than the shortest by this factor. Real runs: up to 1.09."""
APART = frozenset({"evidence-unrelated", "evidence-outlier"})
"""Verdicts that the checkpoints are not of one run."""


@record
class Evidence:
    """The sampled checkpoints compared with each other; see ``ema_cli.evidence.probe``."""

    inputs: tuple[int, ...]
    """Positions of the inputs that were compared, without a previous average: at most 128, evenly chosen."""
    elements: int
    """Sampled elements per checkpoint that are finite, in pieces that differ between the checkpoints."""
    distances: tuple[tuple[float, ...], ...]
    """Between those inputs: the root mean square of the differences, each relative to that of its piece."""
    nearest_cosines: tuple[float | None, ...]
    """Of each of those inputs, the largest cosine to another one; ``None`` if there is nothing to compare."""
    path_ratio: float | None
    """Length of the path through the inputs in fold order, relative to the shortest; ``None`` for too few inputs."""
    typical_ratio: float | None
    """Mean length of the path over all orders, relative to the shortest."""
    order_decided: bool
    """Whether the weights have one order that is much shorter than most."""
    shortest_order: tuple[int, ...]
    """The inputs in the shortest order, beginning with the earlier end; empty for too few inputs."""
    copies: tuple[tuple[int, ...], ...]
    """Groups of inputs with bit-equal samples."""
    verdicts: tuple[str, ...]
    """Codes of the warnings that follow from this evidence."""
    outliers: tuple[int, ...] = ()
    """The inputs that ``evidence-outlier`` is about."""
