"""What the checkpoints hold, as digests that are taken while their bytes pass by: no byte is read twice for them.

A digest is that of the averaged tensors of one checkpoint: of their names, types, shapes and the CRC-32 of their
elements in C order. CRC-32s of parts can be combined, and the tensors are added up, so the digest depends neither on
the format of the file nor on the order or size of the pieces that are read. It finds damage and copies, not forgery.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.records.plan import Plan
from ema_cli.storage.digest import with_lookahead
from ema_cli.storage.extents import Located, TensorIndex, TensorLayout
from ema_cli.storage.strided_read import announce, read_elements

_MODULUS = 1 << 128
_PIECE_BYTES = 1 << 22


class ContentDigests:
    """Adds up the tensors of each checkpoint; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sums = [0] * len(plan.used)
        self._lock = threading.Lock()

    def add(self, number: int, crcs: Sequence[int]) -> None:
        """Add an averaged tensor: the CRC-32 of what each checkpoint in use holds of it."""
        with self._lock:
            for row, (i, crc) in enumerate(zip(self._plan.used, crcs, strict=True)):
                layout = self._plan.layout(self._plan.tensors[number], i)
                self._sums[row] = (self._sums[row] + _of_tensor(layout, crc)) % _MODULUS

    def digests(self) -> dict[int, str]:
        """Return the digest of each checkpoint in use, once all tensors were added."""
        return {i: f"{total:032x}" for i, total in zip(self._plan.used, self._sums, strict=True)}


def digest_of(index: TensorIndex, names: Collection[str], on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Read tensors of a checkpoint, and return the digest that a fold takes of it when it averages those.

    Args:
        index: of the checkpoint.
        names: the averaged tensors; those that it has not are left out.
        on_bytes: told how many bytes were read, piece by piece.

    Raises:
        InputChanged: they cannot be read to the end.

    """
    ahead_bytes = max(source.prefetch_bytes for source in index.sources)
    crcs: dict[int, int] = {}
    pieces = with_lookahead(_pieces(index, names), _Piece.announce, lambda piece: piece.nbytes, ahead_bytes)
    for piece in pieces:
        raw = np.empty(piece.nbytes, dtype=np.uint8)
        read_elements(piece.extent, piece.start, raw)
        crcs[piece.number] = zlib_ng.crc32(raw, crcs.get(piece.number, 0))
        on_bytes(piece.nbytes)
    return f"{sum(_of_tensor(index.layouts[number], crc) for number, crc in crcs.items()) % _MODULUS:032x}"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of elements of one tensor; an empty tensor has one, too."""

    number: int
    extent: Located
    start: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.extent.layout.dtype.itemsize

    def announce(self) -> None:
        announce(self.extent, self.start, self.count)


def _pieces(index: TensorIndex, names: Collection[str]) -> Iterator[_Piece]:
    for number, layout in enumerate(index.layouts):
        if layout.name in names:
            extent, step = index.extent(number), _PIECE_BYTES // layout.dtype.itemsize
            for start in range(0, max(layout.elements, 1), step):
                yield _Piece(number, extent, start, min(step, layout.elements - start))


def _of_tensor(layout: TensorLayout, crc: int) -> int:
    text = f"{layout.name}\0{layout.dtype.name}\0{layout.shape}\0{crc:08x}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
