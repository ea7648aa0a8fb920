"""From the name of a device to the lane that computes on it. numpy and torch are imported only when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.records.plan import Plan

if TYPE_CHECKING:
    from ema_cli.fold.lanes import Lane

_NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def resolve_device(name: str) -> str:
    """Return ``name``; for ``auto`` return ``cuda`` if torch finds a GPU, else ``cpu``."""
    if name != "auto":
        return name
    if not _NVIDIA_DRIVER.exists():
        return "cpu"
    from ema_cli.fold.cuda import count_gpus  # noqa: PLC0415 - torch takes seconds to import

    return "cuda" if count_gpus() else "cpu"


def lane_maker(device: str, plan: Plan) -> Callable[[], Lane]:
    """Return a function that makes the lane of one worker thread on ``device``.

    Raises:
        UsageError: this machine does not have the device.

    """
    block_elements, averages = plan.buffers.block_elements, len(plan.outputs)
    if device == "cpu":
        from ema_cli.fold.lanes import CpuLane  # noqa: PLC0415 - numpy, which planning does not need

        return partial(CpuLane, block_elements=block_elements, averages=averages)
    from ema_cli.fold.cuda import TorchLane, find_device  # noqa: PLC0415 - torch takes seconds to import

    return partial(TorchLane, find_device(device), block_elements=block_elements, averages=averages)
