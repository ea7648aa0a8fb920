"""The results of a search for checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ema_cli.discovery.checkpoints import Found, close_all, discover
from ema_cli.options.average import make_options


def find(*names: Path | str, **options: Any) -> Found:
    """Discover, and close the files again."""
    found = discover(make_options(names, **options))
    close_all(found.checkpoints)
    return found


def skipped(found: Found) -> dict[str, str]:
    """Return the skipped inputs, with the reasons."""
    return {entry.path.name: entry.reason for entry in found.skipped}


def names_of(found: Found) -> list[str]:
    """Return the names of the checkpoints found, in order."""
    return [checkpoint.path.name for checkpoint in found.checkpoints]
