"""Average training checkpoints: stream them tensor by tensor into an EMA, with a report.

    >>> import ema_cli
    >>> report = ema_cli.average(["run/ckpt_*.pt"], decay=0.9, output="ema.safetensors")
    >>> report.averages[0].weights

Everything here is imported on first use; ``import ema_cli`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ema_cli._version import __version__

if TYPE_CHECKING:
    from ema_cli.api import average, diff, inspect, load_report, plan, verify
    from ema_cli.api.averaging_in_memory import average_tensors, load_average
    from ema_cli.api.recomputing import update_bn
    from ema_cli.errors import EmaAvgError, EmaAvgWarning
    from ema_cli.training.callbacks.lightning_callbacks import LightningAverage, LightningEMA
    from ema_cli.training.callbacks.trainer_callbacks import TrainerAverage, TrainerEMA
    from ema_cli.training.live.ema import EMA

__all__ = [
    "EMA",
    "EmaAvgError",
    "EmaAvgWarning",
    "LightningAverage",
    "LightningEMA",
    "TrainerAverage",
    "TrainerEMA",
    "__version__",
    "average",
    "average_tensors",
    "diff",
    "inspect",
    "load_average",
    "load_report",
    "plan",
    "update_bn",
    "verify",
]
_HOMES = {
    "EMA": "ema_cli.training.live.ema",
    "EmaAvgError": "ema_cli.errors",
    "EmaAvgWarning": "ema_cli.errors",
    "LightningAverage": "ema_cli.training.callbacks.lightning_callbacks",
    "LightningEMA": "ema_cli.training.callbacks.lightning_callbacks",
    "TrainerAverage": "ema_cli.training.callbacks.trainer_callbacks",
    "TrainerEMA": "ema_cli.training.callbacks.trainer_callbacks",
    "average_tensors": "ema_cli.api.averaging_in_memory",
    "load_average": "ema_cli.api.averaging_in_memory",
    "update_bn": "ema_cli.api.recomputing",
}
"""The modules of what is not in ``ema_cli.api``."""


def __getattr__(name: str) -> object:
    """Import the public functions when they are asked for (PEP 562)."""
    if name in __all__:
        try:
            return getattr(import_module(_HOMES.get(name, "ema_cli.api")), name)
        except ModuleNotFoundError as missing:
            if missing.name != "torch":
                raise
            raise ModuleNotFoundError(f"ema_cli.{name} needs torch: pip install torch", name="torch") from missing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name the public functions although they are not imported yet."""
    return __all__
