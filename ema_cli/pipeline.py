"""The sentence of the program: find, order, weigh, plan, examine, check, fold, write, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.discovery.order import order_series
from ema_cli.distributed.alone import Alone
from ema_cli.errors import EmaAvgError, Proposal
from ema_cli.events import Listener, Planned, WarningIssued, ignore
from ema_cli.fold.devices import choose_device
from ema_cli.options.average import Options
from ema_cli.options.shell_command import shell_command
from ema_cli.planning.make_plan import make_plan
from ema_cli.preflight.check_plan import Preflight, fail_if_strict, mark_allowed, preflight
from ema_cli.record import record
from ema_cli.records.plan import Plan
from ema_cli.report.model import Report

if TYPE_CHECKING:
    from ema_cli.distributed.assistant import Assistant

_MOST_COMMANDS = 3
"""Alternatives that a hint shows."""


@record
class Outcome:
    """The result of a run."""

    report: Report
    up_to_date: bool
    """The outputs already existed, and nothing was written."""


@contextmanager
def planned(options: Options, listener: Listener = ignore, *, writes: bool = False) -> Iterator[Plan]:
    """Find, order and weigh the checkpoints and make the plan; the checkpoints stay open inside the context.

    Args:
        options: what to average, how, and where to.
        listener: receives an event for every checkpoint that is opened.
        writes: whether the plan will be carried out: what an error proposes instead writes, too.

    Raises:
        EmaAvgError: the inputs cannot be averaged as ``options`` ask; see ``ema_cli.errors``.

    """
    with ExitStack() as opened:
        try:
            plan = _make_plan(options, listener, opened)
        except EmaAvgError as error:
            opened.close()
            error.hint = _first_that_works(error.proposals, options, writes=writes) or error.hint
            raise
        yield plan


def _make_plan(options: Options, listener: Listener, opened: ExitStack) -> Plan:
    """Return the plan; ``opened`` closes the checkpoints."""
    found = discover(options, listener)
    opened.callback(close_all, found.checkpoints)
    if options.continue_from is None:
        series = order_series(found, options)
    else:
        from ema_cli.continuation.continued_series import continue_series  # noqa: PLC0415 - rarely needed

        series = continue_series(found, options, opened)
    plan = make_plan(series, options)
    if options.device == "auto":
        device, reason = choose_device(plan)
        plan = plan if device == "cpu" else make_plan(series, replace(options, device=device))
        plan = replace(plan, device_reason=reason)
    return replace(plan, warnings=(*options.config_warnings, *plan.warnings))


def _first_that_works(proposals: Sequence[Proposal], options: Options, *, writes: bool) -> str:
    """Return the first of the proposals that can be planned, as a hint, with others of the same reason: a choice.

    The result is empty if none can be planned.
    """
    tried: list[Proposal] = []
    reason, commands = "", list[str]()
    for proposal in proposals:
        if proposal in tried or (reason and proposal.reason != reason) or len(commands) == _MOST_COMMANDS:
            continue
        tried.append(proposal)
        try:
            proposed = replace(options, **proposal.changes)
            if proposal.runs and proposed.lacks_decay:  # a batch does not show the choices
                continue
            output = proposed.output if proposed.output_format == "same" else None  # it is named like a checkpoint
            tries = [replace(proposed, paths=(run,), output=output, report=()) for run in proposal.runs] or [proposed]
            for one in tries:
                with ExitStack() as opened:
                    _make_plan(replace(one, method=("uniform",)) if one.lacks_decay else one, ignore, opened)
        except EmaAvgError:
            continue
        reason = proposal.reason
        commands.append(shell_command(proposed, proposal.runs, writes=writes))
    return f"{reason}: {'; or '.join(commands)}" if commands else ""


def run_average(
    options: Options, listener: Listener = ignore, argv: Sequence[str] = (), ranks: Alone | None = None
) -> Outcome:
    """Average the checkpoints that ``options`` name, write the outputs and their reports.

    With ``ranks``, other processes fold a part: each calls ``assist_average``.

    Raises:
        EmaAvgError: see ``ema_cli.errors``; then no output was changed, unless the message lists what is new.

    """
    started = time.monotonic()
    ranks = ranks or Alone()
    listener = ranks.listening(listener)
    with ExitStack() as locks, planned(options, listener, writes=True) as made:
        ranks.agree(made, options)
        examined, checked = examine(made, options, locks)
        plan = announce(examined, checked, options, listener)
        if checked.up_to_date is not None:
            from ema_cli.report.report_files import write_requested_reports  # noqa: PLC0415 - numpy, not needed to plan

            write_requested_reports(checked.up_to_date, options)
            ranks.release()
            return Outcome(report=checked.up_to_date, up_to_date=True)
        from ema_cli.execution import carry_out  # noqa: PLC0415 - numpy, not needed to plan

        report = carry_out(plan, options, listener, argv, started, replaced=checked.replaced, ranks=ranks)
    return Outcome(report=report, up_to_date=False)


def assist_average(options: Options, assistant: Assistant) -> None:
    """Plan the same average as rank 0 of several processes, and fold and write a part of it.

    Raises:
        EmaAvgError: as ``run_average`` does.

    """
    with planned(options, assistant.listen, writes=True) as made:
        assistant.assist(made, options)


def examine(plan: Plan, options: Options, locks: ExitStack | None = None) -> tuple[Plan, Preflight]:
    """Check whether ``plan`` can be carried out and, unless nothing is to be done, whether it averages one series.

    Return the plan with the evidence, and the result of the checks with the warnings that follow from it. A run gives
    ``locks``, and is not examined if it cannot be carried out; see ``preflight``.

    Raises:
        EmaAvgError: as ``preflight`` does.
        InputChanged: a checkpoint ends early, or cannot be read.

    """
    checked = preflight(plan, options, locks)
    is_stopped = locks is not None and checked.obstacles
    if not options.probe or checked.up_to_date is not None or is_stopped:
        return plan, checked
    from ema_cli.evidence.examine import examine_weights  # noqa: PLC0415 - numpy, which other commands need not

    found = examine_weights(plan, options)
    warnings = (*checked.warnings, *mark_allowed(found.warnings, options))
    return replace(plan, evidence=found.evidence), replace(checked, warnings=warnings)


def announce(plan: Plan, checked: Preflight, options: Options, listener: Listener) -> Plan:
    """Report the plan and its warnings, unless an obstacle makes it useless; return the plan with all warnings.

    Raises:
        EmaAvgError: the first obstacle; nothing was reported.
        StrictWarnings: there are warnings, and ``--strict`` was given.

    """
    if checked.obstacles:
        raise next(iter(checked.obstacles.values()))
    plan = replace(plan, warnings=checked.warnings)
    listener(Planned(plan=plan))
    for warning in plan.warnings:
        listener(WarningIssued(warning=warning))
    fail_if_strict(plan.warnings, options)
    return plan
