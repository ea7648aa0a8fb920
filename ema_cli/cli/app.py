"""The commands: parse options, call the core, show the result. Nothing about averaging is decided here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ema_cli._version import __version__
from ema_cli.cli import checking, topics, update_bn_command
from ema_cli.cli.ci import detect
from ema_cli.cli.config.command import ConfiguredCommand, begin
from ema_cli.cli.console import Console, Style
from ema_cli.cli.group import DEFAULT, DefaultGroup
from ema_cli.cli.options import BatchCommandLine, BatchOptions, Checkpoints, CommandLine, Given, takes
from ema_cli.errors import UsageError
from ema_cli.options.average import make_options

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

PLAN = "plan"

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run folders, or folders to search for them: a folder that contains checkpoints is a run.",
        metavar="DIR...",
        show_default=False,
    ),
]

_AVERAGE_HELP = """\
Average training checkpoints into one safetensors file, with a report.

Streams the checkpoints tensor by tensor, in order, into a running EMA: E_1 = theta_1, E_n = d E_(n-1) + (1-d) theta_n.
The other methods: ema-avg help methods.

  ema-avg run/ckpt_*.pt --decay 0.9 -o ema.safetensors\n
  ema-avg plan run/ --decay 0.999\n
  ema-avg run/ --per step --half-life 500 -o ema.safetensors\n
  ema-avg run/ --decay 0.8 --decay 0.9 -o 'ema_{decay}.safetensors'
"""
_PLAN_HELP = "Show order, shares, tensors, bytes and all problems of an average; write nothing."

_BATCH_HELP = """\
Make one average per run folder: continue after failures, skip outputs that are up to date, and report each result.

Takes every option of ema-avg average, for all runs.

  ema-avg batch runs/ --half-life 4\n
  ema-avg batch runs/*/ --decay 0.9 -o 'averages/{name}.safetensors' --jobs 2 --index averages/index.json\n
  ema-avg batch --manifest jobs.toml
"""


def _show_version() -> None:
    from ema_cli.fold.kernel import describe_lane  # noqa: PLC0415 - a binary that other commands load when they fold

    console = Console(Style())
    console.result(f"ema-avg {__version__}")
    console.result(f"fold on the CPU: {describe_lane()}")


def _version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        _show_version()
        raise typer.Exit


@app.callback()
def _group(
    *,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True, show_default=False
    ),
) -> None:
    """Average training checkpoints."""


def _named(checkpoints: Sequence[str] | None, context: typer.Context) -> Sequence[str]:
    """Return the named checkpoints.

    Raises:
        UsageError: a command that only looks has none.

    """
    examples = {PLAN: "ema-avg plan CKPT... --decay 0.9", "inspect": "ema-avg inspect CKPT..."}
    if not checkpoints and context.info_name in examples:
        raise UsageError("no checkpoints were named", hint=examples[context.info_name])
    return checkpoints or ()


@app.command(
    PLAN,
    cls=ConfiguredCommand,
    help=_PLAN_HELP,
    short_help="Show what an average would do; write nothing.",
)
@app.command(
    DEFAULT,
    cls=ConfiguredCommand,
    help=_AVERAGE_HELP,
    short_help="Average checkpoints; the word may be left out.",
)
@takes()
def _average(context: typer.Context, *, checkpoints: Checkpoints = None, given: Given, line: CommandLine) -> None:
    console, config = begin(context, line.style(detect(line.ci, os.environ)))
    options = make_options(_named(checkpoints, context), **given, **config)
    from ema_cli.cli.commands import average, plan  # noqa: PLC0415 - help and usage errors need none of it

    if line.dry_run or context.info_name == PLAN:
        plan(options, console)
    else:
        average(options, console, argv=sys.argv)


@app.command("batch", cls=ConfiguredCommand, help=_BATCH_HELP, short_help="Average each of several run folders.")
@takes(BatchOptions, BatchCommandLine)
def _batch(context: typer.Context, *, runs: Runs = None, given: Given, line: BatchCommandLine) -> None:
    console, config = begin(context, line.style(detect(line.ci, os.environ)))
    from ema_cli.cli.batch_commands import batch  # noqa: PLC0415

    raise typer.Exit(batch(runs or [], {**given, **config}, line, context=context, console=console, argv=sys.argv))


@app.command("inspect", short_help="Show what is in checkpoints.")
@takes(only=("key", "strip_prefix", "json", "quiet", "verbose", "color"))
def _inspect(context: typer.Context, *, checkpoints: Checkpoints = None, given: Given, line: CommandLine) -> None:
    """Show the content of checkpoints: format, where the weights are, step, tensors, types, ties."""
    from ema_cli.cli.commands import inspect  # noqa: PLC0415

    inspect(make_options(_named(checkpoints, context), **given), Console(line.style()))


app.command("diff", help=checking.DIFF_HELP, short_help="Compare two checkpoints, tensor by tensor.")(checking.diff)
app.command(
    "verify",
    help=checking.VERIFY_HELP,
    short_help="Check an output against its report and its inputs.",
    context_settings={"allow_extra_args": True},
)(checking.verify)
app.command("update-bn", help=update_bn_command.UPDATE_HELP, short_help=update_bn_command.SHORT_HELP)(
    update_bn_command.update_statistics
)
app.command("help", help=topics.HELP_HELP, short_help="Show a topic: methods, formats, ci, ...")(topics.show_help)
app.command("version", help="Show the version, and whether the compiled kernel is used.")(_show_version)
