"""A fault in one system call of a process, made by a library that is loaded before all others."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.case import CannotBeTried

KILL = 0
SHORT = -1
"""Only half of what was asked for is transferred."""
EOF = -2
"""A read says that the file ends there."""
STOP = -3
"""The process stops before the call, until it is told to go on."""
RUN = -4
"""A command is run first, and the call is made then."""
_SOURCE = Path(__file__).with_name("shim.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The call that is hit, and how."""

    call: str
    number: int
    """Which of the calls on files under the folder, from 1 on."""
    code: int
    """What it fails with, or ``KILL``, ``SHORT``, ``EOF``, ``STOP`` or ``RUN``."""
    folder: Path
    no_reserve: bool = False
    """Whether space cannot be taken beforehand, as on some file systems."""
    command: str = ""
    """What the shell is given to run."""

    def __str__(self) -> str:
        names = {KILL: "SIGKILL", SHORT: "half", EOF: "nothing", STOP: "stopped", RUN: self.command}
        how = names.get(self.code) or os.strerror(self.code)
        return f"{self.call} {self.number}: {how}"


def compiler() -> str | None:
    """Return the C compiler, if there is one: without it no system call can be made to fail."""
    return shutil.which("gcc") or shutil.which("cc")


class Shim:
    """The compiled library.

    Args:
        folder: for the library, and for its note of the call that it hit.

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
        """Return the environment in which a process has the library, and meets no fault."""
        return {"LD_PRELOAD": str(self._library)}

    def environment(self, fault: Fault) -> dict[str, str]:
        """Return the environment in which a process meets the fault."""
        self._note.unlink(missing_ok=True)
        return {
            **self.preloaded(),
            **({"FAULT_NO_RESERVE": "1"} if fault.no_reserve else {}),
            "FAULT_CALL": fault.call,
            "FAULT_NUMBER": str(fault.number),
            "FAULT_ERRNO": str(fault.code),
            "FAULT_FOLDER": f"{fault.folder}/",
            "FAULT_LOG": str(self._note),
            "FAULT_RUN": fault.command,
        }

    def tracing(self, folder: Path, trace: Path) -> dict[str, str]:
        """Return the environment in which every call that changes a folder or something in it is told to a file."""
        nothing = Fault(call="none", number=1, code=RUN, folder=folder)
        return {**self.environment(nothing), "FAULT_TRACE": str(trace), "FAULT_FOLDER": str(folder)}

    def hit(self) -> str:
        """Return the path on which the call was hit; nothing if the process did not come that far."""
        return self._note.read_text() if self._note.exists() else ""
