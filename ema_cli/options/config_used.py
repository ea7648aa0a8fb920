"""What a configuration file set."""

from __future__ import annotations

from ema_cli.record import record


@record
class ConfigUsed:
    """The configuration file of a run."""

    path: str
    options: tuple[str, ...]
    """The options that it set, by their keys; without those that a flag or a variable replaced."""
