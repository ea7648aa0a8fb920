"""The program as Typer sees it: a group of commands, which are built when they are named."""

from __future__ import annotations

import typer

from ema_cli.cli.group import DefaultGroup

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        from ema_cli.cli.topics import show_version  # noqa: PLC0415 - rarely asked for

        show_version()
        raise typer.Exit


@app.callback()
def _group(
    *,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True, show_default=False
    ),
) -> None:
    """Average training checkpoints."""
