"""Parts of the output of a run that terminals and CI services would act on."""

from __future__ import annotations

import re

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
