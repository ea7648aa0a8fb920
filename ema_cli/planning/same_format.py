"""``--format same``: the averages in the places that the last checkpoint has for its weights."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.errors import UsageError
from ema_cli.records.files import Placement
from ema_cli.records.plan import PlannedTensor
from ema_cli.records.series import OrderedCheckpoint
from ema_cli.storage.locations import Location


def place_in_copy(members: Sequence[OrderedCheckpoint], tensors: Sequence[PlannedTensor], path: Location) -> Placement:
    """Return the files of the last checkpoint, and where the tensors are in them.

    Raises:
        UsageError: the tensors cannot be replaced there.

    """
    raise UsageError("--format same", hint="")
