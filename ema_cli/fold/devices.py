"""From the name of a device to the lane that computes on it. numpy and torch are imported only when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.errors import UsageError
from ema_cli.records.plan import Plan

if TYPE_CHECKING:
    from ema_cli.fold.lanes import Lane

_NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def resolve_device(name: str) -> str:
    """Return ``name``; for ``auto`` return ``cuda`` if torch finds a GPU, else ``cpu``."""
    if name != "auto":
        return name
    if not _NVIDIA_DRIVER.exists() or find_spec("torch") is None:
        return "cpu"
    from ema_cli.fold.cuda import count_gpus  # noqa: PLC0415 - torch takes seconds to import

    return "cuda" if count_gpus() else "cpu"


def check_gpu(name: str) -> None:
    """Raise if there is no GPU called ``name``.

    Raises:
        UsageError: torch is not installed, or does not find this GPU.

    """
    if find_spec("torch") is None:
        raise UsageError(f"--device {name} needs torch, which is not installed", hint="pip install torch")
    from ema_cli.fold.cuda import find_device  # noqa: PLC0415 - torch takes seconds to import

    find_device(name)


def lane_maker(device: str, plan: Plan) -> Callable[[], Lane]:
    """Return a function that makes the lane of one worker thread on ``device``.

    Raises:
        UsageError: this machine does not have the device, or not its library.

    """
    block_elements, averages = plan.buffers.block_elements, len(plan.outputs)
    if device == "cpu":
        from ema_cli.fold.lanes import cpu_lane  # noqa: PLC0415 - numpy, which planning does not need

        return partial(cpu_lane, block_elements=block_elements, averages=averages)
    check_gpu(device)
    from ema_cli.fold.cuda import TorchLane, find_device  # noqa: PLC0415 - torch takes seconds to import

    return partial(TorchLane, find_device(device), block_elements=block_elements, averages=averages)
