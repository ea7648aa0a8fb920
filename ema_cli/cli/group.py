"""The group of commands and its help: ``ema-avg CKPT...`` without a command word means ``ema-avg average CKPT...``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from ema_cli.errors import UsageError
from ema_cli.naming import nearest
from ema_cli.text import quoted
from ema_cli.weights.methods import SPECS

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT = "average"
COMPLETION = "_EMA_AVG_COMPLETE"
"""The variable by which the completion of a shell calls the program."""
_MOST_DIGITS = 10
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


class DefaultGroup(TyperGroup):
    """A group whose first word may be left out; its help is that of the default command, followed by the commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Click's context, which Typer hides
        """Insert the default command unless the first word is a command or an option of the group."""
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            close = nearest(args[0], self.commands, most=1, cutoff=0.75)
            if close and not ctx.resilient_parsing and not Path(args[0]).exists():  # a misspelled command
                raise UsageError(f"there is no command or file {quoted(args[0])}", hint=f"ema-avg {close[0]}")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def _main_shell_completion(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        """Complete a command line, if a shell asks for it by variables; Typer reads them."""
        if os.environ.get(COMPLETION):
            check_completion(os.environ)
        super()._main_shell_completion(*arguments, **named)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Show the options of the default command, then the commands."""
        from rich.console import Console  # noqa: PLC0415 - slow to import, and needed for help alone
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        command = self.commands[DEFAULT]
        shown = type(ctx)(command, info_name=ctx.info_name, help_option_names=ctx.help_option_names)
        command.format_help(shown, formatter)
        table = Table.grid(padding=(0, 2))
        for name, other in self.commands.items():
            table.add_row(Text(name, style="bold cyan"), other.get_short_help_str(limit=100))
        _print_panel(table, "Commands")
        Console().print("Explanations by topic: ema-avg help", highlight=False)


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


class MainCommand(TyperCommand):
    """A command that averages: its help ends with the table of the methods."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Show the options, then the methods."""
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        super().format_help(ctx, formatter)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("method", "weights", "steps", "in the literature"):
            table.add_column(title, overflow="fold")
        for name, spec in SPECS.items():
            table.add_row(Text(name, style="bold cyan"), spec.definition, spec.steps, spec.literature)
        _print_panel(table, "Methods")


def _print_panel(table: Table, title: str) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.panel import Panel  # noqa: PLC0415

    Console().print(Panel(table, title=title, title_align="left", border_style="dim"))
