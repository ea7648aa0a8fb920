"""A fault in one system call of a process, made by a preloaded library."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.case import CannotBeTried

KILL = 0
SHORT = -1
"""Only half of the bytes are transferred."""
EOF = -2
"""A read reports the end of the file."""
STOP = -3
"""The process stops before the call, until it is continued."""
RUN = -4
"""A command is run first, then the call is made."""
_SOURCE = Path(__file__).with_name("shim.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The call that is hit, and how."""

    call: str
    number: int
    """Which of the calls on the folder and on files in it, from 1 on."""
    code: int
    """The error of the call, or ``KILL``, ``SHORT``, ``EOF``, ``STOP`` or ``RUN``."""
    folder: Path
    no_reserve: bool = False
    """Whether space cannot be reserved, as on some file systems."""
    command: str = ""
    """The shell command of ``RUN``."""

    def __str__(self) -> str:
        names = {KILL: "SIGKILL", SHORT: "half", EOF: "nothing", STOP: "stopped", RUN: self.command}
        how = names.get(self.code) or os.strerror(self.code)
        return f"{self.call} {self.number}: {how}"


def compiler() -> str | None:
    """Return the C compiler, if there is one; the shim needs it."""
    return shutil.which("gcc") or shutil.which("cc")


class Shim:
    """The compiled library.

    Args:
        folder: for the library, and for the path of the call that it hit.

    Raises:
        CannotBeTried: there is no C compiler.

    """

    def __init__(self, folder: Path) -> None:
        self._library = folder / "shim.so"
        self._note = folder / "hit"
        files = ["-o", str(self._library), str(_SOURCE)]
        if (found := compiler()) is None:
            raise CannotBeTried("no C compiler")
        command = [found, "-O1", "-shared", "-fPIC", *files, "-ldl"]
        subprocess.run(command, check=True)

    def preloaded(self) -> dict[str, str]:
        """Return the environment of a process with the library and without a fault."""
        return {"LD_PRELOAD": str(self._library)}

    def environment(self, fault: Fault) -> dict[str, str]:
        """Return the environment of a process with the fault."""
        self._note.unlink(missing_ok=True)
        return {
            **self.preloaded(),
            **({"FAULT_NO_RESERVE": "1"} if fault.no_reserve else {}),
            "FAULT_CALL": fault.call,
            "FAULT_NUMBER": str(fault.number),
            "FAULT_ERRNO": str(fault.code),
            "FAULT_FOLDER": str(fault.folder),
            "FAULT_LOG": str(self._note),
            "FAULT_RUN": fault.command,
        }

    def tracing(self, folder: Path, trace: Path, *, harmless: bool = False) -> dict[str, str]:
        """Return the environment of a process that logs every call that changes something in a folder, or every call.

        ``harmless`` also logs the calls that change nothing.
        """
        nothing = Fault(call="none", number=1, code=RUN, folder=folder)
        more = {"FAULT_TRACE_ALL": "1"} if harmless else {}
        return {**self.environment(nothing), "FAULT_TRACE": str(trace), **more}

    def hit(self) -> str:
        """Return the path of the call that was hit; empty if the process did not make that call."""
        return self._note.read_text() if self._note.exists() else ""

    def hit_at(self) -> float:
        """Return when the call was hit, in seconds since the epoch."""
        return self._note.stat().st_mtime
