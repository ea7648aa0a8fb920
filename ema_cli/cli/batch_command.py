"""``ema-avg batch``: from its options to the averages of many runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ema_cli.cli.batch_options import BatchCommandLine, BatchOptions
from ema_cli.cli.ci import detect
from ema_cli.cli.config.command import ConfiguredCommand, begin
from ema_cli.cli.options import Given, takes

commands = typer.Typer()
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run folders, or folders to search for them: a folder that contains checkpoints is a run.",
        metavar="DIR...",
        show_default=False,
    ),
]

_BATCH_HELP = """\
Make one average per run folder: continue after failures, skip outputs that are up to date, and report each result.

Takes every option of ema-avg average, for all runs.

  ema-avg batch runs/ --half-life 4\n
  ema-avg batch runs/*/ --decay 0.9 -o 'averages/{name}.safetensors' --jobs 2 --index averages/index.json\n
  ema-avg batch --manifest jobs.toml
"""


@commands.command("batch", cls=ConfiguredCommand, help=_BATCH_HELP)
@takes(BatchOptions, BatchCommandLine)
def batch(context: typer.Context, *, runs: Runs = None, given: Given, line: BatchCommandLine) -> None:
    """Make one average per run folder."""
    console, config = begin(context, line.style(detect(line.ci, os.environ)))
    from ema_cli.cli import batch_commands as work  # noqa: PLC0415 - help and usage errors need none of it

    raise typer.Exit(work.batch(runs or [], {**given, **config}, line, context=context, console=console, argv=sys.argv))
