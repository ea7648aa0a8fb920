"""What each command does between the options and the console."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ema_cli.cli import render
from ema_cli.cli.console import Console
from ema_cli.cli.progress import ProgressDisplay
from ema_cli.discover import close_all, discover
from ema_cli.errors import OutputError
from ema_cli.events import Event, Planned, Warned
from ema_cli.options import Options
from ema_cli.pipeline import planned, run_average
from ema_cli.records import Notice, Plan
from ema_cli.report.preview import checkpoint_document, plan_document
from ema_cli.uptodate import find_up_to_date


def average(options: Options, console: Console, argv: Sequence[str]) -> None:
    """Average, with the plan, the warnings, progress, a summary, and the result on stdout."""
    with ProgressDisplay(console) as progress:

        def listen(event: Event) -> None:
            match event:
                case Planned(plan=plan):
                    render.plan(plan, options, console)
                case Warned(notice=notice):
                    console.notice(notice)
                case _:
                    progress.show(event)

        outcome = run_average(options, listen, argv)
    if console.style.json:
        console.document(dataclasses.asdict(outcome.report))
    render.outcome(outcome, options, console)


def plan(options: Options, console: Console) -> None:
    """Show the plan, and what would keep it from being carried out."""
    with planned(options) as made:
        notices = [*made.notices, *_output_notices(made, options)]
    if console.style.json:
        console.document(plan_document(made, notices))
        return
    render.plan(made, options, console)
    for notice in notices:
        console.notice(notice)


def _output_notices(made: Plan, options: Options) -> list[Notice]:
    if options.output is None:
        return []
    try:
        found = find_up_to_date(made, options)
    except OutputError as error:
        return [Notice(code="output-exists", message=error.message, hint=error.hint)]
    return [Notice(code="up-to-date", message="the outputs are up to date: nothing would be done")] if found else []


def inspect(options: Options, console: Console) -> None:
    """Show what is in each checkpoint."""
    found = discover(options)
    close_all(found.checkpoints)
    if console.style.json:
        console.document({"checkpoints": [checkpoint_document(c) for c in found.checkpoints]})
        return
    for checkpoint in found.checkpoints:
        render.checkpoint(checkpoint, console)
    render.left_out(found.left_out, console)
    for notice in found.notices:
        console.notice(notice)
