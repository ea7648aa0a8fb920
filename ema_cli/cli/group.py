"""The group of commands: ``ema-avg CKPT...`` without a command word means ``ema-avg average CKPT...``.

A command is imported and built when it is named: all of them take longer than the work of many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info

from ema_cli.errors import UsageError
from ema_cli.naming import nearest
from ema_cli.text import quoted

DEFAULT = "average"
SHORT_HELPS = {
    DEFAULT: "Average checkpoints; the word may be left out.",
    "plan": "Show what an average would do; write nothing.",
    "batch": "Average each of several run folders.",
    "inspect": "Show what is in checkpoints.",
    "diff": "Compare two checkpoints, tensor by tensor.",
    "verify": "Check an output against its report and its inputs.",
    "update-bn": "Recompute the BatchNorm statistics of an average on your data.",
    "help": "Show a topic: methods, formats, ci, ...",
    "version": "Show the version.",
}
"""What each command does, in the order of the help."""
COMPLETION = "_EMA_AVG_COMPLETE"
"""The variable by which the completion of a shell calls the program."""
_MOST_DIGITS = 10
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


def is_average(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of an average: it has no other command, and does not ask for help."""
    return bool(arguments) and (arguments[0] == DEFAULT or arguments[0] not in (*SHORT_HELPS, *_OWN_OPTIONS))


class _Commands(Mapping[str, Any]):
    """The commands by name, each built once."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - Click's command, which Typer hides
        if name not in self._built:
            self._built[name] = _build(name)
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in SHORT_HELPS

    def __iter__(self) -> Iterator[str]:
        return iter(SHORT_HELPS)

    def __len__(self) -> int:
        return len(SHORT_HELPS)


def _build(name: str) -> Any:  # noqa: ANN401
    """Return a command, from its declaration.

    Raises:
        KeyError: there is none of that name.

    """
    info = next(one for one in _declarations(name).registered_commands if one.name == name)
    info.short_help = SHORT_HELPS[name]
    return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")


def _declarations(name: str) -> typer.Typer:
    """Import the module of a command, and return the commands that it declares."""
    match name:
        case "average" | "plan":
            from ema_cli.cli.average_command import commands  # noqa: PLC0415 - only what is named
        case "batch":
            from ema_cli.cli.batch_command import commands  # noqa: PLC0415
        case "inspect" | "diff" | "verify":
            from ema_cli.cli.checking import commands  # noqa: PLC0415
        case "update-bn":
            from ema_cli.cli.update_bn_command import commands  # noqa: PLC0415
        case "help" | "version":
            from ema_cli.cli.topics import commands  # noqa: PLC0415
        case _:
            raise KeyError(name)
    return commands


class DefaultGroup(TyperGroup):
    """A group whose first word may be left out; its help is one page."""

    short_helps = SHORT_HELPS

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**{**settings, "commands": _Commands()})

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002
        """Return the names of the commands, without building any."""
        return list(SHORT_HELPS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Click's context, which Typer hides
        """Insert the default command unless the first word is a command or an option of the group."""
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            is_word = not args[0].startswith("-")
            close = nearest(args[0], self.commands, most=1, cutoff=0.75)
            if is_word and close and not ctx.resilient_parsing and not Path(args[0]).exists():  # a misspelled command
                raise UsageError(f"there is no command or file {quoted(args[0])}", hint=f"ema-avg {close[0]}")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def _main_shell_completion(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        """Complete a command line, if a shell asks for it by variables; Typer reads them."""
        if os.environ.get(COMPLETION):
            check_completion(os.environ)
        super()._main_shell_completion(*arguments, **named)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002
        """Show the first page."""
        from ema_cli.cli.front_page import show_front_page  # noqa: PLC0415 - needed for help alone

        show_front_page(self, ctx)


def check_completion(environment: Mapping[str, str]) -> None:
    """Raise if the variable of the completion has another value than those that shells set.

    Raises:
        UsageError: it is no instruction for a known shell, or the shell's own variables are missing.

    """
    instruction = environment[COMPLETION]
    action, _, shell = instruction.partition("_")
    hint = f"unset {COMPLETION}, which only the completion of a shell sets"
    if action not in ("complete", "source") or shell not in _SHELLS:
        known = " or ".join(f"{action}_SHELL" for action in ("complete", "source"))
        message = f"{COMPLETION}={quoted(instruction)} is not {known}, where SHELL is one of {', '.join(_SHELLS)}"
        raise UsageError(message, hint=hint)
    if instruction == "complete_bash":
        number = environment.get("COMP_CWORD", "")
        if "COMP_WORDS" not in environment or not (number.isdecimal() and len(number) < _MOST_DIGITS):
            message = f"{COMPLETION}={instruction} needs the variables COMP_WORDS and COMP_CWORD, which bash sets"
            raise UsageError(message, hint=hint)
