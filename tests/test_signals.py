"""A slice of the campaign of faults: runs that are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.faults.slices import campaign


@pytest.mark.campaign
def test_a_signal_or_a_storm_of_them_ends_a_run_cleanly() -> None:
    """128 + n, the old output unchanged, and nothing left; or the signal came too late, and all outputs are there."""
    campaign("signals", 5)


_ENDED_LATE = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
from ema_cli.cli import main
sys.argv = ["ema-avg", "version"]
main()
"""


def test_a_signal_while_the_interpreter_ends_prints_no_traceback() -> None:
    """Torch works until then, for about a second: the signal ends the process, and nothing interrupts its functions."""
    done = subprocess.run(
        [sys.executable, "-c", _ENDED_LATE], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
