"""The group of commands and its help: ``ema-avg CKPT...`` without a command word means ``ema-avg average CKPT...``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from ema_cli.errors import UsageError
from ema_cli.text import quoted
from ema_cli.weights.methods import SPECS

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT = "average"
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


class DefaultGroup(TyperGroup):
    """A group whose first word may be left out; its help is that of the default command, followed by the commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Click's context, which Typer hides
        """Insert the default command unless the first word is a command or an option of the group."""
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            close = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.75)
            if close and not Path(args[0]).exists():  # a misspelled command
                raise UsageError(f"there is no command or file {quoted(args[0])}", hint=f"ema-avg {close[0]}")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

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
