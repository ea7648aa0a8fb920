"""Which pieces of the flat tensors of the ranks a parameter consists of.

A flat tensor has a number, its slot: those of the first rank come first. A piece is a stretch of a parameter that is
contiguous in one slot. Reference: ``deepspeed/utils/zero_to_fp32.py``, which joins the same pieces in memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, repeat

from ema_cli.errors import InputRefused
from ema_cli.text import plural

MOST_PIECES = 6_000_000
"""In one checkpoint; more would not fit into the memory that reading the structure may take."""


class PieceTable:
    """The pieces of all tensors: columns of numbers, as there may be millions."""

    def __init__(self) -> None:
        self.slots = array("q")
        self.starts = array("q")
        """The first element of each piece in its slot."""
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, firsts: Sequence[int], slots: Sequence[int], starts: Sequence[int]) -> tuple[int, ...]:
        """Add the pieces of a tensor, given the first element of each; return the links of its layout.

        Raises:
            InputRefused: there are too many pieces.

        """
        if len(self.slots) + len(firsts) > MOST_PIECES:
            raise InputRefused(f"has its parameters in more than {MOST_PIECES:,} pieces")
        self.slots.extend(slots)
        self.starts.extend(starts)
        if len(firsts) <= 1:
            return ()
        links = tuple(firsts)
        return self._known.setdefault(links, links)


class SplitParameters:
    """Stage 3: every parameter is split into one part per rank; the parts of a rank are in its flat tensors in order.

    Args:
        sizes: the elements of each flat tensor, the same for every rank.
        ranks: the number of ranks.

    """

    def __init__(self, sizes: Sequence[int], ranks: int) -> None:
        self._bounds = list(accumulate(sizes, initial=0))
        self._flat = len(sizes)
        self._ranks = ranks
        self._taken = 0
        """Elements of each rank that were taken."""

    def take(self, elements: int, table: PieceTable) -> tuple[int, ...]:
        """Add the pieces of the next parameter to a table; return the links of its layout.

        Raises:
            InputRefused: the ranks have fewer elements.

        """
        if not elements:
            return table.add([0], [0], [0])
        length = -(-elements // self._ranks)
        begin, end = self._taken, self._taken + length
        if end > self._bounds[-1]:
            raise InputRefused(f"has flat tensors of {self._bounds[-1]:,} elements per rank, fewer than its parameters")
        self._taken = end
        firsts = range(0, elements, length)
        slot = bisect_right(self._bounds, begin) - 1
        if end <= self._bounds[slot + 1]:
            slots = range(slot, slot + len(firsts) * self._flat, self._flat)
            return table.add(firsts, slots, list(repeat(begin - self._bounds[slot], len(firsts))))
        pieces = [
            (first + piece - begin, rank * self._flat + which, piece - self._bounds[which])
            for rank, first in enumerate(firsts)
            for piece, which in _cut(self._bounds, begin, begin + min(length, elements - first))
        ]
        return table.add(*_columns(pieces))

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            InputRefused: the ranks have more elements than the parameters.

        """
        if self._taken != self._bounds[-1]:
            raise InputRefused(
                f"contradicts itself: its flat tensors have {self._bounds[-1]:,} elements per rank, its parameters "
                f"{self._taken:,} with {plural(self._ranks, 'rank')}",
                hint="parameters that are partitioned within groups of ranks (MiCS) cannot be joined",
            )


class JoinedParameters:
    """Stages 1 and 2: the parameters of a group are one vector, which is cut at the same length for every rank.

    Args:
        sizes: the elements that each rank has of the vector.
        group: the number of the parameter group.
        groups: the number of all groups, which are the flat tensors of a rank.

    """

    def __init__(self, sizes: Sequence[int], group: int, groups: int) -> None:
        self._bounds = list(accumulate(sizes, initial=0))
        self._group = group
        self._groups = groups
        self._taken = 0

    def take(self, elements: int, padding: int, table: PieceTable) -> tuple[int, ...]:
        """Add the pieces of the next parameter to a table, skip its padding, and return the links of its layout.

        Raises:
            InputRefused: the ranks have fewer elements.

        """
        begin, end = self._taken, self._taken + elements
        if end > self._bounds[-1]:
            raise InputRefused(
                f"has flat tensors of {self._bounds[-1]:,} elements in group {self._group}, fewer than its parameters"
            )
        self._taken = end + padding
        if not elements:
            return table.add([0], [0], [0])
        pieces = [
            (piece - begin, which * self._groups + self._group, piece - self._bounds[which])
            for piece, which in _cut(self._bounds, begin, end)
        ]
        return table.add(*_columns(pieces))

    def finish(self) -> None:
        """Check that nothing is left but padding, which is less than two elements per rank, as zero_to_fp32 does.

        Raises:
            InputRefused: there is.

        """
        step = 2 * (len(self._bounds) - 1)
        if -(-self._taken // step) != -(-self._bounds[-1] // step):
            raise InputRefused(
                f"contradicts itself: its flat tensors have {self._bounds[-1]:,} elements in group {self._group}, its "
                f"parameters {self._taken:,}"
            )


def _cut(bounds: Sequence[int], begin: int, end: int) -> list[tuple[int, int]]:
    """Cut ``[begin, end)`` at the bounds: return where each piece begins, and the number of its interval."""
    pieces = []
    while begin < end:
        which = bisect_right(bounds, begin) - 1
        pieces.append((begin, which))
        begin = min(end, bounds[which + 1])
    return pieces


def _columns(pieces: Sequence[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    firsts, slots, starts = zip(*pieces, strict=True)
    return list(firsts), list(slots), list(starts)
