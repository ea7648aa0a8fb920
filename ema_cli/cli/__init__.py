"""The command line. Nothing below this package prints, and nothing below it imports it."""

from __future__ import annotations

import os

from ema_cli.cli.signals import Terminated, install
from ema_cli.cli.streams import reserve_descriptors

_CANNOT_START = 71
"""As ``ExitCode.EXHAUSTED``, which takes a moment to load."""


def main() -> None:
    """Run the command line of this process."""
    install()
    reserve_descriptors()
    try:
        from ema_cli.cli.main import run  # noqa: PLC0415 - takes a moment, in which a signal may come

        run()
    except Terminated as signalled:
        os._exit(128 + signalled.number)
    # The interpreter itself raises SystemError where it gets no memory. What comes later is told by run.
    except (ImportError, MemoryError, OSError, SystemError) as failure:
        told = "" if isinstance(failure, SystemError) else str(failure).partition("\n")[0]
        reason = told or "there is not enough memory"
        os.write(2, f"error: ema-avg cannot be loaded: {reason}\n".encode(errors="backslashreplace"))
        os._exit(_CANNOT_START)
