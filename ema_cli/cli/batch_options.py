"""The options of ``ema-avg batch``: those of an average, and a few of its own."""

from __future__ import annotations

from pathlib import Path

import typer

from ema_cli.cli.config.command import values_of
from ema_cli.cli.config.settings import Settings
from ema_cli.cli.options import FILE, CommandLine, Given, by_name
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared, option
from ema_cli.options.output_options import PATH
from ema_cli.record import record
from ema_cli.storage.locations import Location


@record
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


@record
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


def given_by(context: typer.Context, settings: Settings) -> Given:
    """Return the values of the core options of ``ema-avg batch`` under other settings than its own."""
    return by_name(declared(BatchOptions), {**context.params, **values_of(context, settings)})
