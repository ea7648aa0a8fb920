"""``ema-avg batch``: its options, which are those of an average and a few of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ema_cli.cli.ci import detect
from ema_cli.cli.config.command import ConfiguredCommand, begin, values_of
from ema_cli.cli.config.settings import Settings
from ema_cli.cli.options import FILE, CommandLine, Given, by_name, takes
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared, option
from ema_cli.options.output_options import PATH
from ema_cli.storage.locations import Location

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommandLine(CommandLine):
    """Options of ``ema-avg batch`` alone."""

    jobs: int = option(1, short="-j", help="Number of runs to average at a time.", metavar="N", panel="Batch")
    index: Path | None = option(
        None,
        help="Write an index of all runs and their reports: .json or .html.",
        metavar="PATH",
        form=FILE,
        panel="Batch",
        in_found_file="below",
    )
    manifest: Path | None = option(
        None,
        help="TOML file with a [[job]] table per run, each with its own options, and [defaults].",
        metavar="FILE",
        form=FILE,
        panel="Batch",
        in_found_file="never",  # it can set everything
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions(Options):
    """The options of an average, as ``ema-avg batch`` shows them."""

    output: Location | None = option(
        Path("{run}/ema.safetensors"),
        short="-o",
        help="The output of each run, or NAME/ for a folder; {run} is the run's folder and {name} its name, besides "
        "{decay} and the like.",
        metavar="PATH",
        form=PATH,
        panel="Batch",
        in_found_file="below",
    )


@commands.command("batch", cls=ConfiguredCommand, help=_BATCH_HELP)
@takes(BatchOptions, BatchCommandLine)
def batch(context: typer.Context, *, runs: Runs = None, given: Given, line: BatchCommandLine) -> None:
    """Make one average per run folder."""
    console, config = begin(context, line.style(detect(line.ci, os.environ)))
    from ema_cli.cli import batch_commands as work  # noqa: PLC0415 - help and usage errors need none of it

    raise typer.Exit(work.batch(runs or [], {**given, **config}, line, context=context, console=console, argv=sys.argv))


def given_by(context: typer.Context, settings: Settings) -> Given:
    """Return the values of the core options of ``ema-avg batch`` under other settings than its own."""
    return by_name(declared(BatchOptions), {**context.params, **values_of(context, settings)})
