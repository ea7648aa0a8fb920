"""``ema-avg CKPT...`` without a command word means ``ema-avg average CKPT...``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from ema_cli.errors import UsageError
from ema_cli.text import quoted

DEFAULT = "average"
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


class DefaultGroup(TyperGroup):
    """A group whose first token may be left out; its help is that of the main job, followed by the commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Click's context, which Typer hides
        """Put the default command in front unless a command or an option of the group is there."""
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            self._refuse_misspelled(args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelled(self, word: str) -> None:
        """A lone word close to a command, that is no file, is a command misspelled."""
        close = difflib.get_close_matches(word, self.commands, n=1, cutoff=0.75)
        if close and not Path(word).exists():
            raise UsageError(f"there is no command or file {quoted(word)}", hint=f"ema-avg {close[0]}")

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Show the options of the main job, then the commands."""
        command = self.commands[DEFAULT]
        shown = type(ctx)(command, info_name=ctx.info_name, help_option_names=ctx.help_option_names)
        command.format_help(shown, formatter)
        table = Table.grid(padding=(0, 2))
        for name, other in self.commands.items():
            table.add_row(Text(name, style="bold cyan"), other.get_short_help_str(limit=100))
        Console().print(Panel(table, title="Commands", title_align="left", border_style="dim"))
        Console().print("Explanations by topic: ema-avg help", highlight=False)
