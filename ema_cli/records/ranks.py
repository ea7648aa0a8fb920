"""The processes of a run that torchrun or srun has started."""

from __future__ import annotations

from ema_cli.record import record


@record
class RankShare:
    """What one process of a run does."""

    host: str
    read_bytes: int
    """About how many bytes of the inputs it reads."""
    written_bytes: int
    """Of the data section of each output."""
