"""The command line. Nothing below this package prints, and nothing below it imports it."""

from __future__ import annotations

import os

from ema_cli.cli.signals import Terminated, install


def main() -> None:
    """Run the command line of this process."""
    install()
    try:
        from ema_cli.cli.main import run  # noqa: PLC0415 - takes a moment, in which a signal may come

        run()
    except Terminated as signalled:
        os._exit(128 + signalled.number)
