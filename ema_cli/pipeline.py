"""The sentence of the program: find, order, weigh, plan, fold, write, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ema_cli.discovery.checkpoints import Found, close_all, discover
from ema_cli.discovery.order import order_series
from ema_cli.errors import RunWarning, UsageError
from ema_cli.events import Listener, Planned, WarningIssued, ignore
from ema_cli.fold.devices import lane_maker, resolve_device
from ema_cli.options.average import Options
from ema_cli.planning.make_plan import make_plan
from ema_cli.preflight.strict import fail_if_strict
from ema_cli.records.plan import Plan
from ema_cli.records.series import Series
from ema_cli.report.model import Report
from ema_cli.text import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    report: Report
    up_to_date: bool
    """The outputs were there already, and nothing was written."""


@contextmanager
def planned(
    options: Options, listener: Listener = ignore, *, check: Callable[[Plan], Iterable[RunWarning]] = lambda _: ()
) -> Iterator[Plan]:
    """Make the plan; the checkpoints stay open inside the context.

    Args:
        options: what to average, how, and where to.
        listener: told of the plan and its warnings.
        check: called before that; raises what makes the plan useless, so that it is not shown in front of an error, and
            returns further warnings.

    Raises:
        EmaAvgError: the inputs cannot be averaged as ``options`` say; see ``ema_cli.errors``.

    """
    from ema_cli.preflight.destinations import refuse_inputs  # noqa: PLC0415

    with ExitStack() as opened:
        found = discover(options, listener)
        opened.callback(close_all, found.checkpoints)
        series = _series(found, options, opened)
        plan = make_plan(series, replace(options, device=resolve_device(options.device)))
        refuse_inputs(found, plan, options)
        plan = replace(plan, warnings=(*plan.warnings, *check(plan)))
        listener(Planned(plan=plan))
        for warning in plan.warnings:
            listener(WarningIssued(warning=warning))
        yield plan


def _series(found: Found, options: Options, opened: ExitStack) -> Series:
    """Order what was found, and go on from an earlier average if one is named."""
    if options.continue_from is None:
        return order_series(found, options)
    from ema_cli.continuation.continued_series import continue_series  # noqa: PLC0415 - rarely needed
    from ema_cli.continuation.previous import open_earlier  # noqa: PLC0415

    earlier = open_earlier(options.continue_from, options)
    opened.callback(close_all, [earlier.checkpoint])
    series = continue_series(earlier, order_series(found, options, earlier.folded), options)
    opened.callback(close_all, [member.checkpoint for member in series.members])
    return series


def run_average(options: Options, listener: Listener = ignore, argv: Sequence[str] = ()) -> Outcome:
    """Average the checkpoints that ``options`` name, write the outputs and their reports.

    Raises:
        EmaAvgError: see ``ema_cli.errors``; then no output was changed.

    """
    if options.output is None:
        raise UsageError("no output was named", hint="-o ema.safetensors; or plan without writing: ema-avg plan ...")
    from ema_cli.execution import carry_out  # noqa: PLC0415 - planning alone needs none of this
    from ema_cli.preflight.destinations import check_places  # noqa: PLC0415
    from ema_cli.preflight.up_to_date import find_earlier  # noqa: PLC0415
    from ema_cli.report.report_files import write_requested_reports  # noqa: PLC0415
    from ema_cli.write.lock import output_lock  # noqa: PLC0415

    earlier: Report | None = None

    def check(plan: Plan) -> list[RunWarning]:
        nonlocal earlier
        check_places(plan, options)
        lane_maker(resolve_device(options.device), plan)
        # What lies there is judged under its lock, as another run may be half way through; a store has none.
        places = [output.path for output in plan.outputs if isinstance(output.path, Path)]
        unlocked = [path for path in places if not locks.enter_context(output_lock(path, resume=options.resume))]
        earlier = find_earlier(plan, options)
        return [_no_lock(path) for path in unlocked]

    started = time.monotonic()
    with ExitStack() as locks, planned(options, listener, check=check) as plan:
        fail_if_strict(plan.warnings, options)
        if earlier is not None:
            write_requested_reports(earlier, options)
            return Outcome(report=earlier, up_to_date=True)
        report = carry_out(plan, options, listener, argv, started)
    return Outcome(report=report, up_to_date=False)


def _no_lock(path: Path) -> RunWarning:
    message = f"{quoted(str(path))} is on a file system without locks: other runs that write it are not noticed"
    return RunWarning(code="no-locks", message=message)
