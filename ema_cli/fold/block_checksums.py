"""The CRC-32s of whole tensors, put together from those of their blocks, which come in any order."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from zlib_ng import zlib_ng

from ema_cli.fold.schedule import Block, block_count
from ema_cli.records.plan import Plan


@dataclass(slots=True)
class _Tensor:
    """A tensor of which not all blocks are done."""

    crcs: list[int]
    """Of the blocks up to ``done``, for each of the places that the tensor is read from or written to."""
    done: int = 0
    waiting: dict[int, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)
    """Blocks out of turn: their CRC-32s and their lengths."""


class BlockChecksums:
    """Collects the CRC-32s of blocks; safe to call from several threads. Blocks before the first gap are not kept."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._open: dict[int, _Tensor] = {}
        self._lock = threading.Lock()

    def add(self, block: Block, crcs: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...] | None:
        """Add a block; return the CRC-32s of its tensor if that was the last one.

        Args:
            block: which it is.
            crcs: of the block, in each of the places that it is read from or written to.
            lengths: its bytes there.

        """
        with self._lock:
            tensor = self._open.setdefault(block.number, _Tensor([0] * len(crcs)))
            tensor.waiting[block.part] = crcs, lengths
            while tensor.done in tensor.waiting:
                ready = zip(tensor.crcs, *tensor.waiting.pop(tensor.done), strict=True)
                tensor.crcs = [zlib_ng.crc32_combine(crc, following, length) for crc, following, length in ready]
                tensor.done += 1
            if tensor.done < block_count(self._plan, self._plan.tensors[block.number]):
                return None
            del self._open[block.number]
            return tuple(tensor.crcs)
