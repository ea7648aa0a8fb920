"""Recompute random pieces of an output from its inputs, and compare them with the written pieces, bit for bit.

All tensors are cut into pieces of equal size, and some pieces are drawn without repetition: a small tensor is as likely
to be drawn as a piece of a large one, and a model with few pieces is checked completely.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ema_cli.errors import InputRefused
from ema_cli.events import Counted, Listener, ignore
from ema_cli.fold.conversion import Bytes
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.record import record
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Report, Tensor, TensorPieces
from ema_cli.storage.extents import Located, TensorLayout
from ema_cli.storage.strided_read import read_block
from ema_cli.text import plural, quoted, shortlist
from ema_cli.verification.inputs import FoundInput
from ema_cli.verification.output import Check
from ema_cli.verification.recompute import find_mismatch, keep, recompute, recompute_pieces

PIECE_ELEMENTS = 1 << 14
_MOST_SHOWN = 3


@record
class Piece:
    """Consecutive elements of one tensor of the output."""

    number: int
    """Position of the tensor."""
    start: int
    """First element."""
    count: int


def draw_pieces(elements: Sequence[int], samples: int, seed: int) -> list[Piece]:
    """Draw ``samples`` pieces, or all if there are fewer, of tensors with these numbers of elements; in file order."""
    ends = list(accumulate(-(-count // PIECE_ELEMENTS) for count in elements))
    total = ends[-1] if ends else 0
    drawn = random.Random(seed).sample(range(total), min(samples, total))  # noqa: S311 - a sample, not a secret
    pieces = []
    for position in sorted(drawn):
        number = bisect_right(ends, position)
        start = (position - (ends[number - 1] if number else 0)) * PIECE_ELEMENTS
        pieces.append(Piece(number=number, start=start, count=min(PIECE_ELEMENTS, elements[number] - start)))
    return pieces


def check_samples(
    output: Checkpoint,
    report: Report,
    inputs: Sequence[FoundInput],
    samples: int,
    seed: int,
    *,
    shown: bool = True,
    listener: Listener = ignore,
) -> tuple[Check, int]:
    """Recompute pieces of the tensors with the type and shape of the report, and compare them with ``output``.

    The number is that of the pieces that could be recomputed. Unless ``shown``, no recomputed number is in the message:
    it would show what is in the inputs.

    Raises:
        InputChanged: a file cannot be read.

    """
    recipe = Recipe(report, inputs)
    tensors = _tensors_as_reported(output, report)
    pieces = draw_pieces([extent.layout.elements for _, extent in tensors], samples, seed)
    nbytes = [piece.count * tensors[piece.number][1].layout.dtype.itemsize * len(inputs) for piece in pieces]
    count = Counted("recomputing", sum(nbytes), listener)
    found = _Findings(pieces=len(pieces), seed=seed, recomputed_on_data=_recomputed_on_data(report))
    for piece, read_bytes in zip(pieces, nbytes, strict=True):
        tensor, extent = tensors[piece.number]
        try:
            expected = recipe.recompute(tensor, extent.layout, piece)
            found.mismatches.extend(_compare(tensor, extent, piece, expected, shown=shown))
        except _InputNeeded as needed:
            found.needed.append(needed.number)
        except InputRefused as refused:
            found.failures[refused.message] += 1
        count.add(read_bytes)
    return found.check(), found.recomputed


class _InputNeeded(InputRefused):
    """An input that cannot be used is needed. Its own check has the reason."""

    def __init__(self, number: int) -> None:
        super().__init__(f"input {number} is needed")
        self.number = number


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What the pieces of an output showed."""

    pieces: int
    seed: int
    recomputed_on_data: int
    """Number of BatchNorm statistics that cannot be checked without the model and the data."""
    mismatches: list[str] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)
    """For each piece that was not recomputed: the number of an input that cannot be used."""
    failures: Counter[str] = field(default_factory=Counter)
    """Other reasons why pieces could not be recomputed."""

    @property
    def recomputed(self) -> int:
        """Number of pieces that were recomputed."""
        return self.pieces - self.failures.total() - len(self.needed)

    def check(self) -> Check:
        """Return the result; pieces that need an input that cannot be used are left out."""
        recomputed = f"{plural(self.recomputed, 'piece')} recomputed, identical bit for bit"
        parts = [*self._faults()] or [recomputed if self.recomputed else "nothing recomputed"]
        unchecked = [*self._unchecked()]
        message = f"{'; '.join(parts)} (seed {self.seed})" + "".join(f"; not checked: {text}" for text in unchecked)
        ok = not (self.mismatches or self.failures)
        return Check(name="samples", ok=ok, message=message, unchecked=", ".join(unchecked))

    def _faults(self) -> Iterator[str]:
        if self.mismatches:
            listed = shortlist(self.mismatches, most=_MOST_SHOWN)
            yield f"{len(self.mismatches):,} of {plural(self.pieces, 'piece')} differ: {listed}"
        if self.failures:
            reasons = shortlist((reason for reason, _ in self.failures.most_common()), most=_MOST_SHOWN)
            yield f"{self.failures.total():,} of {plural(self.pieces, 'piece')} cannot be recomputed: {reasons}"

    def _unchecked(self) -> Iterator[str]:
        if self.needed:
            one = len(set(self.needed)) == 1
            inputs = f"input {self.needed[0]:,}" if one else "inputs that cannot be used"
            yield f"{len(self.needed):,} of {plural(self.pieces, 'piece')} (they need {inputs})"
        if self.recomputed_on_data:
            statistics = plural(self.recomputed_on_data, "BatchNorm statistic")
            yield f"{statistics} (they need the model and the data)"


def _recomputed_on_data(report: Report) -> int:
    return sum(tensor.action == Action.RECOMPUTED for tensor in report.averages[0].tensors)


def _tensors_as_reported(output: Checkpoint, report: Report) -> list[tuple[Tensor, Located]]:
    """Return the tensors of an output with the type and shape of the report, without those that need data."""
    reported = {t.name: t for t in report.averages[0].tensors if t.action != Action.RECOMPUTED}
    pairs = [(reported[extent.layout.name], extent) for extent in output.index if extent.layout.name in reported]
    return [(t, extent) for t, extent in pairs if (t.dtype, t.shape) == (extent.layout.dtype.name, extent.layout.shape)]


def _compare(tensor: Tensor, extent: Located, piece: Piece, expected: Bytes, *, shown: bool) -> Iterator[str]:
    found = read_block(extent, piece.start, piece.count)
    mismatch = find_mismatch(expected, found, extent.layout.dtype)
    if mismatch is not None:
        index = _index(tensor.shape, piece.start + mismatch.index)
        more = f" and {mismatch.count - 1:,} more" if mismatch.count > 1 else ""
        recomputed = mismatch.expected if shown else "another number"
        yield f"{quoted(tensor.name)} at {index} is {mismatch.found}, recomputed {recomputed}{more}"


def _index(shape: Sequence[int], flat: int) -> tuple[int, ...]:
    """Return the index in each dimension of an element, given its index in row-major order."""
    index: list[int] = []
    for size in reversed(shape):
        flat, inner = divmod(flat, size)
        index.insert(0, inner)
    return tuple(index)


class Recipe:
    """Recomputes tensors of an output from its inputs, with the weights and options of its report."""

    def __init__(self, report: Report, inputs: Sequence[FoundInput]) -> None:
        self._inputs = inputs
        self._weights = report.averages[0].weights
        self._buffers = report.command.options.get("buffers")
        self._positions: dict[int, dict[str, int]] = {}
        """Positions of tensors by name, for each list of layouts (by its id, as inputs share lists)."""

    def recompute(self, tensor: Tensor, layout: TensorLayout, piece: Piece) -> Bytes:
        """Return the expected bytes of a piece.

        Raises:
            InputRefused: the piece cannot be recomputed; the message says why.

        """
        if tensor.action == Action.COPIED:
            first = self._buffers == "first" and is_batch_norm_statistic(tensor.name) and self._has(0, layout.name)
            number = 0 if first else len(self._inputs) - 1
            extent = self._extent(number, layout)
            if extent.layout.dtype is not layout.dtype:
                path = self._inputs[number].reported.path
                raise InputRefused(f"{quoted(layout.name)} has a different type in {quoted(path)}")
            return read_block(extent, piece.start, piece.count)
        if tensor.pieces is not None:
            return self._join(tensor.pieces, layout, piece)
        terms = [(weight, self._extent(i, layout)) for i, weight in enumerate(self._weights) if weight != 0]
        kept = keep(terms, piece.start, piece.count, layout.dtype) if tensor.kept else None
        return recompute(terms, piece.start, piece.count, layout.dtype) if kept is None else kept

    def _join(self, pieces: TensorPieces, layout: TensorLayout, piece: Piece) -> Bytes:
        """Return the expected bytes of a piece of a concatenated tensor."""
        extents = [self._extent(number, layout, pieces.axis) for number in pieces.inputs]
        if sum(extent.layout.elements for extent in extents) != layout.elements:
            raise InputRefused(f"the inputs do not have the rank of {quoted(layout.name)} together")
        terms = list(zip(pieces.factors, extents, strict=True))
        return recompute_pieces(terms, pieces.axis, piece.start, piece.count, layout.dtype)

    def _has(self, number: int, name: str) -> bool:
        """Whether an input has a tensor: with ``--on-missing last`` some inputs may lack it."""
        checkpoint = self._inputs[number].checkpoint
        return checkpoint is None or any(layout.name == name for layout in checkpoint.index.layouts)

    def _extent(self, number: int, layout: TensorLayout, joined: int | None = None) -> Located:
        """Return a tensor of an input, checked to have the shape and kind of type of the output.

        The length along the axis ``joined`` may be another.
        """
        checkpoint = self._inputs[number].checkpoint
        if checkpoint is None:
            raise _InputNeeded(number + 1)
        layouts = checkpoint.index.layouts
        positions = self._positions.get(id(layouts))
        if positions is None:
            positions = self._positions[id(layouts)] = {own.name: i for i, own in enumerate(layouts)}
        position = positions.get(layout.name)
        if position is not None:
            own = layouts[position]
            shapes = [[n for axis, n in enumerate(shape) if axis != joined] for shape in (own.shape, layout.shape)]
            if shapes[0] == shapes[1] and own.dtype.kind is layout.dtype.kind:
                return checkpoint.index.extent(position)
        raise InputRefused(f"{quoted(str(checkpoint.path))} has no {quoted(layout.name)} of that shape and type")
