"""``ema-avg average`` and ``ema-avg plan``: from their options to the average, or to the plan alone."""

from __future__ import annotations

import os
import sys

import typer

from ema_cli.cli.ci import detect
from ema_cli.cli.config.command import ConfiguredCommand, begin
from ema_cli.cli.options import Checkpoints, CommandLine, Given, named, takes
from ema_cli.options.average import make_options

commands = typer.Typer()
_PLAN = "plan"
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


@commands.command(_PLAN, cls=ConfiguredCommand, help=_PLAN_HELP)
@commands.command("average", cls=ConfiguredCommand, help=_AVERAGE_HELP)
@takes()
def average(context: typer.Context, *, checkpoints: Checkpoints = None, given: Given, line: CommandLine) -> None:
    """Average, or show the plan if that is the command or ``--dry-run`` was given."""
    console, config = begin(context, line.style(detect(line.ci, os.environ)))
    options = make_options(named(checkpoints, context), **given, **config)
    from ema_cli.cli import commands as work  # noqa: PLC0415 - help and usage errors need none of it

    if line.dry_run or context.info_name == _PLAN:
        work.plan(options, console)
    else:
        work.average(options, console, argv=sys.argv)
