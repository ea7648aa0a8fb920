"""What a configuration file set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigUsed:
    """The configuration file of a run."""

    path: str
    options: tuple[str, ...]
    """The options that it set, by their keys; without those that a flag or a variable replaced."""
