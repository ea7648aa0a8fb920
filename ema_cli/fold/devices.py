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
    return name if name != "auto" else "cpu" if _why_no_gpu() else "cuda"


def choose_device(plan: Plan) -> tuple[str, str]:
    """Return the device for ``--device auto``, and why. torch is only imported if a GPU would pay.

    Args:
        plan: made for the CPU.

    """
    if lacking := _why_no_library():
        return "cpu", lacking
    from ema_cli.fold.break_even import estimate  # noqa: PLC0415 - numpy, which planning does not need

    times = estimate(plan)
    if not times.gpu_pays:
        return "cpu", str(times)
    lacking = _why_no_gpu()
    return ("cpu", lacking) if lacking else ("cuda", str(times))


def _why_no_library() -> str:
    """Return why this machine cannot use a GPU, as far as can be found out without torch; empty if it may."""
    if not _NVIDIA_DRIVER.exists():
        return "no NVIDIA driver"
    return "" if find_spec("torch") else "torch is not installed"


def _why_no_gpu() -> str:
    """Return why this machine cannot use a GPU; empty if it can."""
    if lacking := _why_no_library():
        return lacking
    from ema_cli.fold.cuda import count_gpus  # noqa: PLC0415 - torch takes seconds to import

    return "" if count_gpus() else "torch finds no GPU"


def check_torch(user: str) -> None:
    """Raise if torch is not installed; ``user`` is what needs it.

    Raises:
        UsageError: it is not.

    """
    if find_spec("torch") is None:
        raise UsageError(f"{user} needs torch, which is not installed", hint="pip install torch")


def check_gpu(name: str) -> None:
    """Raise if there is no GPU called ``name``.

    Raises:
        UsageError: torch is not installed, or does not find this GPU.

    """
    check_torch(f"--device {name}")
    from ema_cli.fold.cuda import find_device  # noqa: PLC0415 - torch takes seconds to import

    find_device(name)


def lane_maker(device: str, plan: Plan) -> Callable[[], Lane]:
    """Return a function that makes the lane of one worker thread on ``device``, which need not be that of the plan.

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
