"""The SHA-256 of the inputs (``--sha256``): several processes share them, each hashes whole checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.events import Counted, Listener
from ema_cli.records.plan import Plan
from ema_cli.storage.digest import sha256_of_all


def hash_inputs(plan: Plan, listener: Listener, rank: int = 0, size: int = 1) -> list[str | None]:
    """Return the digest of every input of a rank, one of ``size``; ``None`` for those of others."""
    indexes = [checkpoint.index for checkpoint in plan.checkpoints]
    own = [number % size == rank for number in range(len(indexes))]
    total = sum(index.size() for index, is_own in zip(indexes, own, strict=True) if is_own)
    count = Counted("hashing", total, listener)
    pairs = zip(indexes, own, strict=True)
    return [sha256_of_all(index.sources, count.add) if is_own else None for index, is_own in pairs]


def joined_digests(of_ranks: Sequence[Sequence[str | None]]) -> list[str | None]:
    """Return the digest of every input from those of all ranks."""
    return [next(filter(None, digests), None) for digests in zip(*of_ranks, strict=True)]
