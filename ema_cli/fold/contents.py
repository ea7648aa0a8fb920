"""What the checkpoints hold, as digests that are taken while their bytes pass by: no byte is read twice for them.

A digest is that of the averaged tensors of one checkpoint: of their names, types, shapes and the CRC-32 of their
elements in C order. CRC-32s of parts can be combined, and the tensors are added up, so the digest depends neither on
the format of the file nor on the order or size of the pieces that are read. It finds damage and copies, not forgery.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field

from zlib_ng import zlib_ng

from ema_cli.fold.schedule import Block, block_count
from ema_cli.records import Plan
from ema_cli.storage.extents import TensorLayout

_MODULUS = 1 << 128


@dataclass(slots=True)
class _Tensor:
    """A tensor of which not all blocks are done."""

    crcs: list[int]
    """Per checkpoint, of the blocks up to ``done``."""
    done: int = 0
    waiting: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Blocks out of turn: per checkpoint their CRC-32 and their length."""


class Contents:
    """Collects the CRC-32s of all blocks; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._open: dict[int, _Tensor] = {}
        self._sums = [0] * len(plan.used)
        self._lock = threading.Lock()

    def add(self, block: Block, crcs: list[int], lengths: list[int]) -> None:
        """Add a block of an averaged tensor: the CRC-32 and the length of what each checkpoint in use has of it."""
        with self._lock:
            tensor = self._open.setdefault(block.number, _Tensor([0] * len(crcs)))
            tensor.waiting[block.part] = crcs, lengths
            while tensor.done in tensor.waiting:
                ready = zip(tensor.crcs, *tensor.waiting.pop(tensor.done), strict=True)
                tensor.crcs = [zlib_ng.crc32_combine(crc, next_crc, length) for crc, next_crc, length in ready]
                tensor.done += 1
            if tensor.done == block_count(self._plan, self._plan.tensors[block.number]):
                del self._open[block.number]
                self._close(block.number, tensor.crcs)

    def digests(self) -> dict[int, str]:
        """Return the digest of each checkpoint in use, once all blocks are done."""
        return {i: f"{total:032x}" for i, total in zip(self._plan.used, self._sums, strict=True)}

    def _close(self, number: int, crcs: list[int]) -> None:
        for row, (i, crc) in enumerate(zip(self._plan.used, crcs, strict=True)):
            position = self._plan.tensors[number].positions[self._plan.layout_numbers[i]]
            layout = self._plan.checkpoints[i].index.layouts[position]
            self._sums[row] = (self._sums[row] + _of_tensor(layout, crc)) % _MODULUS


def _of_tensor(layout: TensorLayout, crc: int) -> int:
    text = f"{layout.name}\0{layout.dtype.name}\0{layout.shape}\0{crc:08x}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
