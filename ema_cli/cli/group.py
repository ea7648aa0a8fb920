"""The group of commands: ``ema-avg CKPT...`` without a command word means ``ema-avg average CKPT...``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from ema_cli.errors import UsageError
from ema_cli.naming import nearest
from ema_cli.text import quoted

DEFAULT = "average"
COMPLETION = "_EMA_AVG_COMPLETE"
"""The variable by which the completion of a shell calls the program."""
_MOST_DIGITS = 10
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


class DefaultGroup(TyperGroup):
    """A group whose first word may be left out; its help is one page."""

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
