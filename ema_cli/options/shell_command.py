"""The command line that stands for a record of options: what a message proposes to run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, declared


def shell_command(options: Options) -> str:
    """Return the command of these options; without an output, ``ema-avg plan``."""
    words = [
        "ema-avg",
        *(["plan"] if options.output is None else []),
        *(f"./{path}" if path.startswith("-") else path for path in options.paths),
    ]
    for one in declared(Options):
        value = getattr(options, one.name)
        if value != one.read(None) or one.name in options.confirmed:
            words.extend(_spelled(one, value))
    return shlex.join(words)


def _spelled(one: Option, value: object) -> Iterator[str]:
    """Yield the words that give an option its value."""
    flag = one.short or one.flag
    match value:
        case bool():
            yield flag
        case Mapping():
            for key, text in value.items():
                yield from (flag, f"{key}={text}")
        case tuple() if one.kind == "list":
            yield from (flag, ",".join(map(str, value)))
        case tuple():
            for single in value:
                yield from (flag, str(single))
        case _:
            yield from (flag, str(value))
