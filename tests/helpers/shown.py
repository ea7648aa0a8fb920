"""What a run shows on a terminal, and parts of its output that terminals and CI services would act on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

FORBIDDEN = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u200e\u200f\u061c\u202e\u202c\u2066\u2069\u2028"]


def check_text(shown: str) -> None:
    """Whatever the file contains, no line of the output is a command to a terminal or to a CI service."""
    for line in shown.splitlines():
        assert not any(c in line for c in FORBIDDEN), ascii(line)
        assert not line.lstrip().startswith(("::", "##")), line


def obeyed(log: str) -> list[str]:
    """Return the workflow commands in a log that a runner would obey."""
    stopped, commands = "", []
    for line in log.splitlines():
        text = line.lstrip()
        if stopped:
            stopped = "" if text == f"::{stopped}::" else stopped
        elif match := re.match(r"::stop-commands::(.+)", text):
            stopped = match.group(1)
        elif text.startswith("::"):
            commands.append(text)
    assert not stopped
    return commands


def on_terminal(command: Sequence[str], stream: str, *, width: int, folder: Path) -> tuple[str, str]:
    """Return what a command shows on ``stdout`` or ``stderr``, a terminal of a width, and on the other, a pipe."""
    terminal, process_end = pty.openpty()
    fcntl.ioctl(process_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: process_end}
    with subprocess.Popen(command, cwd=folder, env={**environment, "TERM": "xterm"}, **streams) as process:  # type: ignore[call-overload]
        os.close(process_end)
        shown = b""
        with contextlib.suppress(OSError):  # its end
            while part := os.read(terminal, 65536):
                shown += part
        piped = (process.stderr if stream == "stdout" else process.stdout).read()
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n"), piped.decode()
