"""The command line that stands for a record of options: what a message proposes to run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ema_cli.naming import RUN_FIELDS, safetensors_name
from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, declared
from ema_cli.storage.locations import Location
from ema_cli.text import without_secrets

UPDATE_COMMAND = "ema-avg update-bn OUT --model MODEL --data DATA -o NEW"
"""The command that recomputes BatchNorm statistics, before there is an output."""


def shell_command(options: Options, runs: Sequence[str] = (), *, writes: bool = True) -> str:
    """Return the command of these options; one that ``writes`` nothing is ``ema-avg plan``, or a dry run.

    With ``runs``, the command is ``ema-avg batch`` for these folders, and its outputs are where batch writes them,
    unless the name of the output is different for every run.
    """
    command = "batch" if runs else "" if writes else "plan"
    words = ["ema-avg", *filter(None, [command]), *map(_path, runs or options.paths)]
    for one in declared(Options):
        value = getattr(options, one.name)
        shared = runs and one.name in ("output", "report") and not _differs_by_run(value)
        if shared and one.name == "output" and options.output_format == "same":
            words.extend(_spelled(one, f"{{run}}/{value.name}"))  # the name decides the format
        if not shared and (value != one.read(None) or one.name in options.confirmed):
            words.extend(_spelled(one, value))
    words += ["--dry-run"] if runs and not writes else []
    return shlex.join(without_secrets(word, whole=True) for word in words)


def update_command(output: Location, *, folder: bool) -> str:
    """Return the command that recomputes the BatchNorm statistics of an output, with placeholders for model and data.

    The new output is beside it, or in the current folder if it is in a store.
    """
    stem = output.name if folder else safetensors_name(output.name).removesuffix(".safetensors")
    name = Path(f"{stem}-bn{'' if folder else '.safetensors'}")
    new = _path(f"{output.parent / name if isinstance(output, Path) else name}{'/' if folder else ''}")
    words = ["ema-avg", "update-bn", _path(str(output)), "--model", "MODEL", "--data", "DATA", "-o", new]
    return shlex.join(without_secrets(word, whole=True) for word in words)


def _path(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path


def _differs_by_run(value: object) -> bool:
    return any(f"{{{field}}}" in str(value) for field in RUN_FIELDS)


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
