"""What the checkpoints hold, as digests that are taken while their bytes pass by: no byte is read twice for them.

A digest is that of the averaged tensors of one checkpoint: of their names, types, shapes and the CRC-32 of their
elements in C order. CRC-32s of parts can be combined, and the tensors are added up, so the digest depends neither on
the format of the file nor on the order or size of the pieces that are read. It finds damage and copies, not forgery.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from ema_cli.records import Plan
from ema_cli.storage.extents import TensorLayout

_MODULUS = 1 << 128


class Contents:
    """Adds up the tensors of each checkpoint; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sums = [0] * len(plan.used)
        self._lock = threading.Lock()

    def add(self, number: int, crcs: Sequence[int]) -> None:
        """Add an averaged tensor: the CRC-32 of what each checkpoint in use holds of it."""
        with self._lock:
            for row, (i, crc) in enumerate(zip(self._plan.used, crcs, strict=True)):
                position = self._plan.tensors[number].positions[self._plan.layout_numbers[i]]
                layout = self._plan.checkpoints[i].index.layouts[position]
                self._sums[row] = (self._sums[row] + _of_tensor(layout, crc)) % _MODULUS

    def digests(self) -> dict[int, str]:
        """Return the digest of each checkpoint in use, once all tensors were added."""
        return {i: f"{total:032x}" for i, total in zip(self._plan.used, self._sums, strict=True)}


def _of_tensor(layout: TensorLayout, crc: int) -> int:
    text = f"{layout.name}\0{layout.dtype.name}\0{layout.shape}\0{crc:08x}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
