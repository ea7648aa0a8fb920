"""The command line. Nothing below this package prints, and nothing below it imports it."""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process."""
    from ema_cli.cli.main import run  # noqa: PLC0415 - importing the package stays free

    run()
