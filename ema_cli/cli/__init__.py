"""The command line, the only package that prints. No other imports it, but ``ema_cli.api`` for its progress display."""

from __future__ import annotations

import gc
import os

from ema_cli.cli.process import Terminated, install_signals, reserve_descriptors

_CANNOT_START = 71
"""Same as ``ExitCode.EXHAUSTED``, without its import time."""
_ALLOCATIONS = 100_000
"""Before Python looks for circular garbage: a start allocates 70,000 objects, of which hardly one becomes garbage."""


def main() -> None:
    """Run the command line of this process."""
    gc.set_threshold(_ALLOCATIONS)
    install_signals()
    reserve_descriptors()
    try:
        from ema_cli.cli.main import run  # noqa: PLC0415 - signals are handled during this import too

        run()
    except Terminated as signalled:
        os._exit(128 + signalled.number)
    # The interpreter raises SystemError when it gets no memory. Later failures are handled by run.
    except (ImportError, MemoryError, OSError, SystemError) as failure:
        message = "" if isinstance(failure, SystemError) else str(failure).partition("\n")[0]
        reason = message or "not enough memory"
        os.write(2, f"error: ema-avg cannot be loaded: {reason}\n".encode(errors="backslashreplace"))
        os._exit(_CANNOT_START)
