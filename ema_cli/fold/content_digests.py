"""Checksums and digests of tensors, taken from the bytes that the fold reads and writes: nothing is read twice.

CRC-32s of blocks, in any order -> CRC-32s of tensors -> one digest per checkpoint. The digest covers the averaged
tensors of the checkpoint: their names, types, shapes and the CRC-32 of their elements in C order. CRC-32s of parts can
be combined, and the digest is a sum over tensors, so it depends neither on the file format nor on the order or size of
the pieces that are read. It finds damage and copies, not forgery.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from zlib_ng import zlib_ng

from ema_cli.fold.schedule import Block, Stretch, block_count
from ema_cli.record import record
from ema_cli.records.plan import Plan
from ema_cli.storage.digest import with_lookahead
from ema_cli.storage.extents import Located, TensorIndex, TensorLayout
from ema_cli.storage.strided_read import announce, read_elements

_MODULUS = 1 << 128
_PIECE_BYTES = 1 << 22


@dataclass(slots=True, eq=False, repr=False)
class _OpenTensor:
    """A tensor some blocks of which are still missing."""

    crcs: list[int]
    """Of the blocks from ``first`` to ``done``: one per file that the tensor is read from or written to."""
    lengths: list[int]
    """Bytes of these blocks in each file."""
    first: int
    done: int
    waiting: dict[int, tuple[Sequence[int], Sequence[int], int]] = field(default_factory=dict)
    """CRC-32s and lengths of blocks that came before their turn, and the position after them."""


class TensorChecksums:
    """Combines CRC-32s of the blocks of a stretch into those of tensors; safe to call from several threads."""

    def __init__(self, plan: Plan, stretch: Stretch) -> None:
        self._plan = plan
        self._stretch = stretch
        self._open: dict[int, _OpenTensor] = {}
        self._lock = threading.Lock()

    def add(self, block: Block, crcs: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...] | None:
        """Add a block; return the CRC-32s of its tensor if that was the last block, else ``None``.

        ``crcs`` and ``lengths`` (in bytes) are those of the block in each file that is read or written. The lengths of
        the only block of a tensor are not needed.
        """
        if block_count(self._plan, self._plan.tensors[block.number]) == 1:
            return tuple(crcs)
        return self.add_parts(block.number, (block.part, block.part + block.parts), crcs, lengths)

    def add_parts(
        self, number: int, parts: tuple[int, int], crcs: Sequence[int], lengths: Sequence[int]
    ) -> tuple[int, ...] | None:
        """Add blocks that are one after the other, from the first to the one before the last of ``parts``."""
        with self._lock:
            if number not in self._open:
                first = self._stretch.first_part if number == self._stretch.first else 0
                self._open[number] = _OpenTensor([0] * len(crcs), [0] * len(crcs), first, first)
            tensor = self._open[number]
            tensor.waiting[parts[0]] = crcs, lengths, parts[1]
            while tensor.done in tensor.waiting:
                following, nbytes, tensor.done = tensor.waiting.pop(tensor.done)
                ready = zip(tensor.crcs, following, nbytes, strict=True)
                tensor.crcs = [zlib_ng.crc32_combine(crc, next_crc, length) for crc, next_crc, length in ready]
                tensor.lengths = [sum(pair) for pair in zip(tensor.lengths, nbytes, strict=True)]
            if (tensor.first, tensor.done) != (0, block_count(self._plan, self._plan.tensors[number])):
                return None
            del self._open[number]
            return tuple(tensor.crcs)

    def parts(self) -> dict[int, tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]]:
        """Return the tensors of which only some blocks were added: these blocks, and their CRC-32s and lengths."""
        return {
            number: ((tensor.first, tensor.done), tuple(tensor.crcs), tuple(tensor.lengths))
            for number, tensor in self._open.items()
        }


class ContentDigests:
    """Adds up the digests of checkpoints, tensor by tensor; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sums = dict.fromkeys(plan.used, 0)
        self._lock = threading.Lock()

    def add(self, number: int, crcs: Sequence[int]) -> None:
        """Add a tensor: its CRC-32 in each of its contributors."""
        tensor = self._plan.tensors[number]
        inputs = self._plan.contributors(tensor)
        layouts = [self._plan.layout(tensor, i) for i in inputs]
        heads = {id(layout): _head(layout) for layout in {id(layout): layout for layout in layouts}.values()}
        parts = [_of_tensor(heads[id(layout)], crc) for layout, crc in zip(layouts, crcs, strict=True)]
        with self._lock:
            for i, part in zip(inputs, parts, strict=True):
                self._sums[i] += part

    def add_tensors(self, first: int, crcs: Sequence[Sequence[int]]) -> None:
        """Add neighboring averaged tensors from ``first`` on: per checkpoint that is read, their CRC-32s."""
        plan = self._plan
        tensors = plan.tensors[first : first + len(crcs[0])]
        one_of_each = {plan.layout_numbers[i]: i for i in plan.used}
        heads = {number: [_head(plan.layout(tensor, i)) for tensor in tensors] for number, i in one_of_each.items()}
        totals = [_of_tensors(heads[plan.layout_numbers[i]], row) for i, row in zip(plan.used, crcs, strict=True)]
        with self._lock:
            for i, total in zip(plan.used, totals, strict=True):
                self._sums[i] += total

    def digests(self) -> dict[int, str]:
        """Return the digest of each checkpoint in use, once all tensors were added."""
        return {i: f"{total % _MODULUS:032x}" for i, total in self._sums.items()}


def digest_of(index: TensorIndex, names: Collection[str], on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Read tensors of a checkpoint; return the digest that a fold computes when it averages these tensors.

    Args:
        index: of the checkpoint.
        names: the averaged tensors; names that the checkpoint does not have are ignored.
        on_bytes: called with the number of bytes of each piece that was read.

    Raises:
        InputChanged: a tensor cannot be read to its end.

    """
    ahead_bytes = max(source.prefetch_bytes for source in index.sources)
    crcs: dict[int, int] = {}
    pieces = with_lookahead(_pieces(index, names), _Piece.announce, lambda piece: piece.nbytes, ahead_bytes)
    for piece in pieces:
        raw = np.empty(piece.nbytes, dtype=np.uint8)
        read_elements(piece.extent, piece.start, raw)
        crcs[piece.number] = zlib_ng.crc32(raw, crcs.get(piece.number, 0))
        on_bytes(piece.nbytes)
    return f"{sum(_of_tensor(_head(index.layouts[number]), crc) for number, crc in crcs.items()) % _MODULUS:032x}"


@record
class _Piece:
    """A run of elements of one tensor; an empty tensor has one piece, too."""

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
                count = min(step, layout.elements - start)
                yield _Piece(number=number, extent=extent, start=start, count=count)


def _head(layout: TensorLayout) -> bytes:
    return f"{layout.name}\0{layout.dtype.name}\0{layout.shape}\0".encode()


def _of_tensor(head: bytes, crc: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%b%08x" % (head, crc)).digest()[:16], "little")


def _of_tensors(heads: Sequence[bytes], crcs: Sequence[int]) -> int:
    """Return the sum of ``_of_tensor`` of many tensors."""
    texts = np.array(crcs, dtype=">u4").tobytes().hex().encode()
    digests = [hashlib.sha256(head + texts[8 * at : 8 * at + 8]).digest() for at, head in enumerate(heads)]
    words = np.frombuffer(b"".join(digests), dtype="<u4").reshape(len(heads), -1)
    sums: list[int] = words[:, :4].sum(axis=0, dtype=np.uint64).tolist()
    return sum(total << 32 * at for at, total in enumerate(sums))
