"""From the name of a device to the lane that computes on it. torch is imported only for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.records.plan import Plan

if TYPE_CHECKING:
    from ema_cli.fold.lane import Lane

_DRIVER = Path("/proc/driver/nvidia")


def resolve_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the first GPU if torch finds one, else the CPU."""
    if name != "auto":
        return name
    if not _DRIVER.exists():
        return "cpu"
    from ema_cli.fold.cuda import count_gpus  # noqa: PLC0415 - torch takes seconds to import

    return "cuda" if count_gpus() else "cpu"


def lane_maker(device: str, plan: Plan) -> Callable[[], Lane]:
    """Return a function that makes one worker's lane on ``device``.

    Raises:
        UsageError: the device does not exist here.

    """
    block_elements, averages = plan.buffers.block_elements, len(plan.outputs)
    if device == "cpu":
        from ema_cli.fold.cpu import CpuLane  # noqa: PLC0415 - numpy, which a plan needs not

        return partial(CpuLane, block_elements=block_elements, averages=averages)
    from ema_cli.fold.cuda import TorchLane, find_device  # noqa: PLC0415 - torch takes seconds to import

    return partial(TorchLane, find_device(device), block_elements=block_elements, averages=averages)
