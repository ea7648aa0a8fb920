"""Recompute random pieces of an output from its inputs, and compare them with what was written, bit for bit.

All tensors are cut into pieces of equal size, and of those some are drawn without repetition: a small tensor counts as
much as a piece of a large one, and a model of few pieces is checked whole.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ema_cli.errors import InputRefused
from ema_cli.events import Counted, Listener, ignore
from ema_cli.fold.conversion import Bytes
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Report, Tensor
from ema_cli.storage.extents import Located, TensorLayout
from ema_cli.text import plural, quoted, shortlist
from ema_cli.verify.inputs import FoundInput
from ema_cli.verify.output import Check
from ema_cli.verify.recompute import find_mismatch, read_piece, recompute

PIECE_ELEMENTS = 1 << 14
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of elements of one tensor of the output."""

    number: int
    """Of the tensor."""
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a sample showed."""

    check: Check
    recomputed: int
    """Pieces that could be."""


def draw_pieces(elements: Sequence[int], samples: int, seed: int) -> list[Piece]:
    """Draw ``samples`` of all pieces of tensors with so many ``elements``, or all of them, in the order of the file."""
    ends = list(accumulate(-(-count // PIECE_ELEMENTS) for count in elements))
    total = ends[-1] if ends else 0
    drawn = random.Random(seed).sample(range(total), min(samples, total))  # noqa: S311 - a sample, not a secret
    return [_piece(ends, elements, position) for position in sorted(drawn)]


def _piece(ends: Sequence[int], elements: Sequence[int], position: int) -> Piece:
    number = bisect_right(ends, position)
    start = (position - (ends[number - 1] if number else 0)) * PIECE_ELEMENTS
    return Piece(number=number, start=start, count=min(PIECE_ELEMENTS, elements[number] - start))


def check_samples(
    output: Checkpoint,
    report: Report,
    inputs: Sequence[FoundInput],
    samples: int,
    seed: int,
    *,
    listener: Listener = ignore,
) -> Sampled:
    """Recompute pieces of the tensors that are as the report says, and compare them with those of ``output``.

    Raises:
        InputChanged: a file cannot be read.

    """
    recipe = Recipe(report, inputs)
    tensors = _as_told(output, report)
    pieces = draw_pieces([extent.layout.elements for _, extent in tensors], samples, seed)
    nbytes = [piece.count * tensors[piece.number][1].layout.dtype.itemsize * len(inputs) for piece in pieces]
    count = Counted("recomputing", sum(nbytes), listener)
    wrong: list[str] = []
    missing = Counter[str]()
    for piece, read_bytes in zip(pieces, nbytes, strict=True):
        tensor, extent = tensors[piece.number]
        try:
            wrong.extend(_compare(tensor, extent, piece, recipe.recompute(tensor, extent.layout, piece)))
        except InputRefused as refused:
            missing[refused.message] += 1
        count.add(read_bytes)
    return _judge(len(pieces), wrong, missing, seed)


def _as_told(output: Checkpoint, report: Report) -> list[tuple[Tensor, Located]]:
    told = {tensor.name: tensor for tensor in report.averages[0].tensors}
    pairs = [(told[extent.layout.name], extent) for extent in output.index if extent.layout.name in told]
    return [(t, extent) for t, extent in pairs if (t.dtype, t.shape) == (extent.layout.dtype.name, extent.layout.shape)]


def _compare(tensor: Tensor, extent: Located, piece: Piece, expected: Bytes) -> Iterator[str]:
    found = read_piece(extent, piece.start, piece.count)
    mismatch = find_mismatch(expected, found, extent.layout.dtype)
    if mismatch is not None:
        place = _index(tensor.shape, piece.start + mismatch.index)
        more = f" and {mismatch.count - 1:,} more" if mismatch.count > 1 else ""
        yield f"{quoted(tensor.name)} at {place} is {mismatch.found}, recomputed {mismatch.expected}{more}"


def _judge(pieces: int, wrong: Sequence[str], missing: Counter[str], seed: int) -> Sampled:
    recomputed = pieces - missing.total()
    failures = []
    if wrong:
        failures.append(f"{len(wrong):,} of {plural(pieces, 'piece')} differ: {shortlist(wrong, most=_MOST_SHOWN)}")
    if missing:
        reasons = shortlist((reason for reason, _ in missing.most_common()), most=_MOST_SHOWN)
        failures.append(f"{missing.total():,} of {plural(pieces, 'piece')} cannot be recomputed: {reasons}")
    message = "; ".join(failures) or f"{plural(recomputed, 'piece')} recomputed, the same bit for bit"
    check = Check(name="samples", ok=not failures, message=f"{message} (seed {seed})")
    return Sampled(check=check, recomputed=recomputed)


def _index(shape: Sequence[int], flat: int) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        flat, inner = divmod(flat, size)
        index.insert(0, inner)
    return tuple(index)


class Recipe:
    """How the tensors of an output come from its inputs, by its report."""

    def __init__(self, report: Report, inputs: Sequence[FoundInput]) -> None:
        self._inputs = inputs
        self._weights = report.averages[0].weights
        self._buffers = report.command.options.get("buffers")
        self._positions: dict[int, dict[str, int]] = {}
        """By the identity of the layouts, which the inputs of a run share."""

    def recompute(self, tensor: Tensor, layout: TensorLayout, piece: Piece) -> Bytes:
        """Return what a piece of the output should be.

        Raises:
            InputRefused: it cannot be known; the message says why.

        """
        if tensor.action == Action.COPIED:
            first = self._buffers == "first" and is_batch_norm_statistic(tensor.name) and self._has(0, layout.name)
            number = 0 if first else len(self._inputs) - 1
            extent = self._extent(number, layout)
            if extent.layout.dtype is not layout.dtype:
                path = self._inputs[number].known.path
                raise InputRefused(f"{quoted(layout.name)} is of another type in {quoted(path)}")
            return read_piece(extent, piece.start, piece.count)
        terms = [(weight, self._extent(i, layout)) for i, weight in enumerate(self._weights) if weight != 0]
        return recompute(terms, piece.start, piece.count, layout.dtype)

    def _has(self, number: int, name: str) -> bool:
        """Whether an input has a tensor: with ``--on-missing last`` one may be missing."""
        checkpoint = self._inputs[number].checkpoint
        return checkpoint is None or any(layout.name == name for layout in checkpoint.index.layouts)

    def _extent(self, number: int, layout: TensorLayout) -> Located:
        """Return a tensor of an input, with as many numbers as the output has."""
        checkpoint = self._inputs[number].checkpoint
        if checkpoint is None:
            raise InputRefused(f"input {number + 1} cannot be used")
        layouts = checkpoint.index.layouts
        positions = self._positions.get(id(layouts))
        if positions is None:
            positions = self._positions[id(layouts)] = {known.name: i for i, known in enumerate(layouts)}
        position = positions.get(layout.name)
        known = None if position is None else layouts[position]
        if (
            position is None
            or known is None
            or known.shape != layout.shape
            or known.dtype.kind is not layout.dtype.kind
        ):
            raise InputRefused(f"{quoted(str(checkpoint.path))} has no {quoted(layout.name)} of that shape and type")
        return checkpoint.index.extent(position)
