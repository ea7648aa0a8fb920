"""What each command does between its options and the console."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing

from ema_cli.cli import ci
from ema_cli.cli.config.sources import CONFIG_IGNORED
from ema_cli.cli.console import Console
from ema_cli.cli.process import Terminated
from ema_cli.cli.views.outcome_view import show_outcome
from ema_cli.cli.views.plan_view import plan_parts, skipped_lines
from ema_cli.cli.views.progress import ProgressDisplay
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.discovery.search import AVERAGES_AVERAGED
from ema_cli.distributed.alone import Alone
from ema_cli.errors import OutputError, RunWarning
from ema_cli.events import Event, Planned, WarningIssued
from ema_cli.options.average import Options
from ema_cli.pipeline import Outcome, examine, planned, run_average
from ema_cli.planning.warnings import BATCHNORM_AVERAGED
from ema_cli.preflight.check_plan import fail_if_strict
from ema_cli.report.model import SCHEMA_VERSION
from ema_cli.report.warning_rank import after_the_run

_UP_TO_DATE = RunWarning(code="up-to-date", message="the outputs are up to date: nothing would be done")


def average(options: Options, console: Console, argv: Sequence[str]) -> None:
    """Average, together with the other processes that torchrun or srun has started, if there are any."""
    launch = console.launch
    if launch is None:
        lead_average(options, console, argv)
        return
    from ema_cli.cli.several_ranks import average_together  # noqa: PLC0415 - torch

    average_together(launch, options, console, lambda fitting, ranks: lead_average(fitting, console, argv, ranks))


def lead_average(options: Options, console: Console, argv: Sequence[str], ranks: Alone | None = None) -> None:
    """Average; what was written is on stdout, and the plan, warnings, progress and a summary are on stderr."""
    about_output: list[RunWarning] = []
    with closing(ProgressDisplay(console)) as progress:

        def listen(event: Event) -> None:
            match event:
                case Planned(plan=plan):
                    console.section("ema-avg plan", begins=True)
                    console.talk(*plan_parts(plan, options, verbose=console.style.verbose))
                    console.section("", begins=False)
                case WarningIssued(warning=warning) if warning.code == CONFIG_IGNORED:
                    pass  # printed at the start
                case WarningIssued(warning=warning) if warning.code == BATCHNORM_AVERAGED and not options.strict:
                    about_output.append(warning)  # its hint is a command for the output
                case _:
                    progress.show(event)

        try:
            outcome = run_average(options, listen, argv, ranks)
        except Terminated as signalled:
            if options.resume:
                signalled.left = "finished tensors are kept, and the same command continues"
            raise
    if console.style.service == "github":
        ci.publish(outcome.report, os.environ)
    if console.style.json:
        _print_report(outcome, console)
    show_outcome(outcome, options, console)
    for warning in about_output:
        console.warning(after_the_run(warning, outcome.report))


def _print_report(outcome: Outcome, console: Console) -> None:
    """Print the report as the JSON document; if that fails, the error says what became of the outputs."""
    try:
        console.document(dataclasses.asdict(outcome.report))
    except OutputError as error:
        done = "were up to date" if outcome.up_to_date else "and their reports were written"
        raise OutputError(f"{error.message}; the outputs {done}", hint=error.hint) from error


def plan(options: Options, console: Console) -> None:
    """Show the plan on stdout, and on stderr everything that would keep it from being carried out."""
    with planned(options) as planned_only:
        made, checked = examine(planned_only, options)
    warnings = checked.dry_run_warnings()
    shown = (*warnings, *([_UP_TO_DATE] if checked.up_to_date is not None else []))
    if console.style.json:
        from ema_cli.report.preview import plan_document  # noqa: PLC0415 - only where JSON is asked for

        console.document(plan_document(made, shown, options.config))
        return
    console.result(*plan_parts(made, options, verbose=console.style.verbose))
    for warning in shown:
        if warning.code != CONFIG_IGNORED:  # printed at the start
            console.warning(warning)
    fail_if_strict(warnings, options, dry_run=True)


def inspect(options: Options, console: Console) -> None:
    """Show what is in each checkpoint."""
    found = discover(options)
    close_all(found.checkpoints)
    if console.style.json:
        from ema_cli.report.preview import checkpoint_document  # noqa: PLC0415

        documents = [checkpoint_document(checkpoint) for checkpoint in found.checkpoints]
        console.document({"schema_version": SCHEMA_VERSION, "checkpoints": documents})
        return
    from ema_cli.cli.views.inspect_view import show_checkpoint  # noqa: PLC0415 - an average shows none

    for checkpoint in found.checkpoints:
        show_checkpoint(checkpoint, console)
    for line in skipped_lines(found.skipped, verbose=console.style.verbose):
        console.talk(line)
    for warning in found.warnings:
        if warning.code != AVERAGES_AVERAGED:  # nothing is averaged here
            console.warning(warning)
