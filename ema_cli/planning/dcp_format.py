"""``--format dcp``: the averages in a folder of ``torch.distributed.checkpoint``."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.records.files import Placement
from ema_cli.records.plan import PlannedTensor


def place_in_dcp(tensors: Sequence[PlannedTensor]) -> Placement:
    """Return the files of the folder, and where the tensors are in them.

    Raises:
        UsageError: a tensor cannot be written in this format.

    """
    raise UsageError("--format dcp", hint="")
