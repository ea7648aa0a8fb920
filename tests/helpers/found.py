"""What a search for checkpoints found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ema_cli.api import make_options
from ema_cli.discovery.checkpoints import Found, close_all, discover


def find(*names: Path | str, **options: Any) -> Found:
    """Discover, and close the files again."""
    found = discover(make_options(names, **options))
    close_all(found.checkpoints)
    return found


def left_out(found: Found) -> dict[str, str]:
    """Return what was left out, with the reasons."""
    return {left.path.name: left.reason for left in found.left_out}


def names_of(found: Found) -> list[str]:
    """Return the names of the checkpoints found, in order."""
    return [checkpoint.path.name for checkpoint in found.checkpoints]
