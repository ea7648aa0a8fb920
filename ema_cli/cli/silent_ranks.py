"""The processes of torchrun and srun that print nothing: all but rank 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ema_cli.cli.exit import DEBUG_VARIABLE, ExitCode
from ema_cli.cli.group import is_average
from ema_cli.cli.process import guarded
from ema_cli.distributed.launch import Launch, alone


def be_silent(launch: Launch, arguments: Sequence[str]) -> None:
    """Print nothing from now on, unless for debugging; end if the command is one for rank 0 alone."""
    if not is_average(arguments):
        _leave_to_first(launch, arguments[0])
    if not os.environ.get(DEBUG_VARIABLE):
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end


def speak_again() -> None:
    """Print errors nevertheless: rank 0 cannot."""
    sys.stderr = guarded(sys.__stderr__, essential=False)


def _leave_to_first(launch: Launch, command: str) -> NoReturn:
    place = f"rank {launch.rank} of {launch.size}"
    sys.stderr.write(f"{place} leaves {command!r} to rank 0. {alone(launch.launcher)}\n")
    sys.exit(ExitCode.OK)
