"""What the help of the main job shows besides its options: the table of the methods."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from ema_cli.weights.methods import SPECS


class MainCommand(TyperCommand):
    """A command whose help ends with the table of the methods."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - Click's, which Typer hides
        """Show the options, then the methods."""
        super().format_help(ctx, formatter)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("method", "weights", "steps", "in the literature"):
            table.add_column(title, overflow="fold")
        for name, spec in SPECS.items():
            table.add_row(Text(name, style="bold cyan"), spec.definition, spec.steps, spec.literature)
        Console().print(Panel(table, title="Methods", title_align="left", border_style="dim"))
