"""Whether the pieces that several ranks saved are the same: data-parallel copies, tensors without a placement.

Files of ``torch.save`` have a checksum of each storage: equal checksums of storages of one size show that pieces are
equal. Where they differ, as where a storage holds more than the piece, the bytes are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ema_cli.errors import InputRefused
from ema_cli.formats.torch_ranks.joined_ranks import JOIN_FIRST, UNDEFINED, Copy, JoinedRanks
from ema_cli.formats.torch_ranks.rank_archive import RankArchive
from ema_cli.text import plural, quoted, shortlist

_BLOCK_BYTES = 1 << 20
_MATRIX = 2
"""Dimensions of a tensor that was certainly trained: statistics and counters have fewer."""


def compare_copies(joined: JoinedRanks, files: Sequence[RankArchive]) -> tuple[str, ...]:
    """Compare the copies in the files of a checkpoint; return the warnings about those that differ.

    Raises:
        InputRefused: the files do not state how they fit together, or a piece has different values on two ranks.

    """
    different = _CopyComparison(files).different(joined.copies)
    if not joined.has_placements:
        _refuse_parts(joined, files, different)
    wrong = [copy for copy in different if copy.is_placed or copy.dimensions >= _MATRIX]
    if wrong:
        raise InputRefused(
            f"has different values on two ranks: {shortlist(_described(copy, files) for copy in wrong)}",
            hint="check that all files are of a single save" if wrong[0].is_placed else JOIN_FIRST,
        )
    names = dict.fromkeys(quoted(copy.name) for copy in different)
    if not names:
        return ()
    found = f"{plural(len(names), 'tensor')} without a placement, such as {next(iter(names))},"
    return (f"{found} {'differ' if len(names) > 1 else 'differs'} between the ranks: those of the first rank are used",)


def _refuse_parts(joined: JoinedRanks, files: Sequence[RankArchive], different: Sequence[Copy]) -> None:
    """Refuse files of ranks that state no placement and are not all the same."""
    counts = Counter(copy.name for copy in joined.copies)
    alone = [layout.name for layout in joined.layouts if layout.elements and counts[layout.name] + 1 != len(files)]
    if not different and not alone:
        return
    why = f"{quoted(alone[0])} is not on every rank" if alone else _described(different[0], files)
    raise InputRefused(
        f"{UNDEFINED}{why}",
        hint=JOIN_FIRST,
    )


def _described(copy: Copy, files: Sequence[RankArchive]) -> str:
    first, other = (quoted(files[place.rank].name) for place in (copy.first, copy.other))
    return f"{quoted(copy.name)} differs between {first} and {other}"


class _CopyComparison:
    """Compares copies. The bytes that are read are bounded by those of all files."""

    def __init__(self, files: Sequence[RankArchive]) -> None:
        self._files = files
        self._left = sum(file.source.size() for file in files)

    def different(self, copies: Iterable[Copy]) -> list[Copy]:
        """Return the copies that differ from the piece of the first rank that has it."""
        return [copy for copy in copies if not self._are_equal(copy)]

    def _are_equal(self, copy: Copy) -> bool:
        first, other = copy.first, copy.other
        one, two = (self._files[place.rank] for place in (first, other))
        known, stated = one.storage(first), two.storage(other)
        if known.crc32 and known[1:] == stated[1:] and first.offset == other.offset:
            return True
        if first.nbytes != other.nbytes:
            return False
        self._left -= 2 * first.nbytes
        if self._left < 0:
            raise InputRefused("has more copies of tensors on several ranks than can be compared")
        sizes = [(begin, min(_BLOCK_BYTES, first.nbytes - begin)) for begin in range(0, first.nbytes, _BLOCK_BYTES)]
        return all(one.read(first, *block) == two.read(other, *block) for block in sizes)
