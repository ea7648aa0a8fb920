"""The commands: parse, call the core, render. No decision about averaging is made here."""

from __future__ import annotations

import sys

import typer

from ema_cli._version import __version__
from ema_cli.cli import checking, topics
from ema_cli.cli import options as given
from ema_cli.cli.batch_options import BatchOptions, Runs
from ema_cli.cli.config.command import ConfiguredCommand, speaker
from ema_cli.cli.console import Console, Style
from ema_cli.cli.group import DEFAULT, DefaultGroup
from ema_cli.cli.main_options import MainOptions, takes
from ema_cli.options.average import Options

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

PLAN = "plan"

_AVERAGE_HELP = """\
Average training checkpoints into one safetensors file, with a report.

Streams the checkpoints tensor by tensor, in order, into a running EMA: E_1 = theta_1, E_n = d E_(n-1) + (1-d) theta_n.

  ema-avg run/ckpt_*.pt --decay 0.9 -o ema.safetensors\n
  ema-avg plan run/ --decay 0.999\n
  ema-avg run/ --per step --half-life 500 -o ema.safetensors\n
  ema-avg run/ --decay 0.8 --decay 0.9 -o 'ema_{decay}.safetensors'
"""
_PLAN_HELP = "Show order, shares, tensors, bytes and every problem of an average; reads no tensor data, writes nothing."

_BATCH_HELP = """\
Make one average per run folder: go on where a run fails, skip what is up to date, and tell how each came out.

Takes every option of the main job, for all runs.

  ema-avg batch runs/ --half-life 4\n
  ema-avg batch runs/*/ --decay 0.9 -o 'averages/{name}.safetensors' --jobs 2 --index averages/index.json\n
  ema-avg batch --manifest jobs.toml
"""


def _version(value: bool) -> None:
    if value:
        Console(Style()).result(f"ema-avg {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    *,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True, show_default=False
    ),
) -> None:
    """Average training checkpoints."""


@app.command(
    PLAN,
    cls=ConfiguredCommand,
    help=_PLAN_HELP,
    short_help="Show what an average would do; read no tensor data, write nothing.",
)
@app.command(
    DEFAULT, cls=ConfiguredCommand, help=_AVERAGE_HELP, short_help="Average checkpoints; the word may be left out."
)
@takes(MainOptions)
def _average(context: typer.Context, *, checkpoints: given.Checkpoints = None, options: MainOptions) -> None:
    console = speaker(context, options.style)
    asked = options.to_options(checkpoints or [])
    from ema_cli.cli.commands import average, plan  # noqa: PLC0415 - help and usage errors need none of it

    if options.dry_run or context.info_name == PLAN:
        plan(asked, console)
    else:
        average(asked, console, argv=sys.argv)


@app.command("batch", cls=ConfiguredCommand, help=_BATCH_HELP, short_help="One average per run folder; keeps going.")
@takes(BatchOptions)
def _batch(context: typer.Context, *, runs: Runs = None, options: BatchOptions) -> None:
    console = speaker(context, options.style)
    from ema_cli.cli.batch_commands import batch  # noqa: PLC0415

    raise typer.Exit(batch(runs or [], options, context, console, argv=sys.argv))


@app.command("inspect")
def _inspect(
    *,
    checkpoints: given.Checkpoints = None,
    key: given.KeyOption = None,
    strip_prefix: given.StripPrefixOption = None,
    json: given.JsonOption = False,
    verbose: given.VerboseOption = False,
    no_color: given.NoColorOption = False,
) -> None:
    """Show what is in checkpoints: format, where the weights are, step, tensors, types, ties."""
    from ema_cli.cli.commands import inspect  # noqa: PLC0415

    console = Console(Style(json=json, verbose=verbose, color=not no_color))
    inspect(Options(paths=tuple(checkpoints or ()), key=key, strip_prefix=strip_prefix), console)


app.command("diff", help=checking.DIFF_HELP)(checking.diff)
app.command("verify", help=checking.VERIFY_HELP)(checking.verify)
app.command("help", help=topics.HELP_HELP, short_help="Show a topic: methods, formats, ci, ...")(topics.show_help)
