"""Files that are not checkpoints: other formats, things that are not files, names that attack a terminal."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.hostile.cases import MISSING, OK, Case, of_bytes
from tests.hostile.opcodes import stop, tensor, text
from tests.hostile.safetensors_cases import one
from tests.hostile.zips import checkpoint

NAMES = {
    "colours": "\x1b[31mred\x1b[0m",
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;file:///etc/passwd\x1b\\w\x1b]8;;\x1b\\",
    "eight-bit escape": "\x9b31m",
    "bell": "\x07\x07",
    "backspace": "safe\b\b\b\bevil",
    "carriage return": "safe\revil",
    "newlines": "a\nb\r\nc",
    "line separators": "a\u2028b\u2029c\x85d",
    "workflow command": "::error file=x::gotcha",
    "workflow command behind a space": " ::error::gotcha",
    "workflow command on a line": "a\n::error::gotcha",
    "stopped commands": "::stop-commands::x",
    "gitlab section": "section_start:1:x\r\x1b[0K",
    "azure command": "##vso[task.setvariable variable=x]y",
    "teamcity": "##teamcity[buildStatus text='x']",
    "markup": "w[/]",
    "markup link": "[link=file:///etc/passwd]x[/link]",
    "markup blink": "[blink red]x",
    "emoji": ":skull: :warning:",
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "entity": "&lt;b&gt;&amp;",
    "markdown": "`code` | cell | **bold** [x](javascript:alert(1)) ![i](http://x)",
    "markdown fence": "```\n# head",
    "comment": "<!-- -->",
    "right to left": "\u202eevil\u202c \u2066x\u2069",
    "marks": "\u200e\u200f\u061c",
    "zero width": "a\u200bb\ufeffc",
    "combining": "e" + "\u0301" * 200,
    "astral": "\U0001f600\U0010ffff",
    "private": "\ue000\uf8ff",
    "NUL": "a\0b",
    "delete": "a\x7fb",
    "percent": "%s%n%x{0}{x}${HOME}$(id)`id`",
    "path": "../../etc/passwd",
    "dots": "....",
    "spaces": "   ",
    "long": "n" * 65_000,
    "long and wide": "\U0001f600" * 16_000,
}
"""Names of tensors that are accepted, and must do nothing where they are shown."""


_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "one byte": (b"\x80", "not a checkpoint"),
    "escape": (b"\x1b[2J\x1b[31m", "not a checkpoint"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "not a checkpoint"),
    "program": (b"\x7fELF" + bytes(64), "not a checkpoint"),
    "script": (b"#!/bin/sh\ntouch canary\n", "not a checkpoint"),
}


def file_cases() -> list[Case]:
    """Return these cases, and good checkpoints with tensor names that attack the programs that show them."""
    named = {
        name: (checkpoint(pickle=stop(b"}(" + text(shown) + tensor() + b"u")), "") for name, shown in NAMES.items()
    }
    quoted = {name: (one(name=_escaped(shown)), "") for name, shown in NAMES.items()}
    return [
        *of_bytes("file", ".pt", _FILES),
        Case(name="file_folder.pt", make=Path.mkdir, word="no checkpoint in", code=MISSING),
        Case(name="file_fifo.pt", make=os.mkfifo, word="not a regular file"),
        Case(name="file_socket.pt", make=_socket, word="cannot be opened"),
        Case(name="file_device.pt", make=lambda path: path.symlink_to("/dev/zero"), word="not a regular file"),
        Case(name="file_terminal.pt", make=lambda path: path.symlink_to("/dev/full"), word="not a regular file"),
        Case(
            name="file_link_to_nothing.pt", make=lambda path: path.symlink_to("gone"), code=MISSING, word="there is no"
        ),
        Case(name="file_link_to_itself.pt", make=lambda path: path.symlink_to(path.name), word="cannot be opened"),
        Case(name="good_file_link.pt", make=_linked, code=OK),
        Case(name="good_file_name_of_another.txt", make=lambda path: path.write_bytes(checkpoint()), code=OK),
        *of_bytes("good_name", ".pt", named, code=OK),
        *of_bytes("good_name", ".safetensors", quoted, code=OK),
    ]


def _escaped(name: str) -> bytes:
    return "".join(f"\\u{unit:04x}" for unit in _units(name)).encode() if not name.isascii() else _ascii(name)


def _ascii(name: str) -> bytes:
    return "".join(c if c.isalnum() else f"\\u{ord(c):04x}" for c in name).encode()


def _units(name: str) -> list[int]:
    raw = name.encode("utf-16-le")
    return [int.from_bytes(raw[place : place + 2], "little") for place in range(0, len(raw), 2)]


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may only be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _linked(path: Path) -> None:
    target = path.with_suffix(".held")
    target.write_bytes(checkpoint())
    path.symlink_to(target.name)
