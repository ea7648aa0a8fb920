"""The public functions. Import them from ``ema_cli``."""

from __future__ import annotations

from ema_cli.api.averaging import average, plan
from ema_cli.api.reading import diff, inspect, load_report, verify
from ema_cli.options.average import make_options

__all__ = ["average", "diff", "inspect", "load_report", "make_options", "plan", "verify"]
