"""The sentence of the program: find, order, weigh, plan, fold, write, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ema_cli.copies import warn_of_copies
from ema_cli.discover import Found, close_all, discover
from ema_cli.errors import StrictWarnings, UsageError
from ema_cli.events import Counted, Listener, Planned, Progress, Warned, ignore
from ema_cli.findings import FoldOutcome
from ema_cli.fold.devices import lane_maker, resolve_device
from ema_cli.options import Options
from ema_cli.order import order_series
from ema_cli.planning import make_plan
from ema_cli.records import Action, Notice, Plan, Series
from ema_cli.report.model import Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.text import plural, quoted, shortlist


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    report: Report
    up_to_date: bool
    """The outputs were there already, and nothing was written."""


@contextmanager
def planned(
    options: Options, listener: Listener = ignore, *, check: Callable[[Plan], object] = lambda _: None
) -> Iterator[Plan]:
    """Make the plan; the checkpoints stay open inside the context.

    Args:
        options: what to average, how, and where to.
        listener: told of the plan and its warnings.
        check: called before that; raises what makes the plan useless, so that it is not shown in front of an error.

    Raises:
        EmaAvgError: the inputs cannot be averaged as ``options`` say; see ``ema_cli.errors``.

    """
    from ema_cli.places import refuse_inputs  # noqa: PLC0415

    with ExitStack() as opened:
        found = discover(options, listener)
        opened.callback(close_all, found.checkpoints)
        series = _series(found, options, opened)
        plan = make_plan(series, replace(options, device=resolve_device(options.device)))
        refuse_inputs(found, plan, options)
        check(plan)
        listener(Planned(plan=plan))
        for notice in plan.notices:
            listener(Warned(notice=notice))
        yield plan


def _series(found: Found, options: Options, opened: ExitStack) -> Series:
    """Order what was found, and go on from an earlier average if one is named."""
    if options.continue_from is None:
        return order_series(found, options)
    from ema_cli.continuation import continue_series  # noqa: PLC0415 - rarely needed
    from ema_cli.earlier import open_earlier  # noqa: PLC0415

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
    from ema_cli.places import check_places  # noqa: PLC0415
    from ema_cli.uptodate import find_earlier  # noqa: PLC0415
    from ema_cli.write.lock import output_lock  # noqa: PLC0415 - planning alone needs none of this

    earlier: Report | None = None

    def check(plan: Plan) -> None:
        nonlocal earlier
        check_places(plan, options)
        lane_maker(resolve_device(options.device), plan)
        for output in plan.outputs:  # what lies there is judged under its lock: another run may be half way through
            locks.enter_context(output_lock(output.path))
        earlier = find_earlier(plan, options)

    started = time.monotonic()
    with ExitStack() as locks, planned(options, listener, check=check) as plan:
        fail_if_strict(plan.notices, options)
        if earlier is not None:
            _write_reports(earlier, options)
            return Outcome(report=earlier, up_to_date=True)
        report = _fold_and_publish(plan, options, listener, argv, started)
    return Outcome(report=report, up_to_date=False)


def _fold_and_publish(plan: Plan, options: Options, listener: Listener, argv: Sequence[str], started: float) -> Report:
    from ema_cli.fold.engine import fold  # noqa: PLC0415 - numpy
    from ema_cli.report.build import Measured, build_report  # noqa: PLC0415
    from ema_cli.write.target import make_target  # noqa: PLC0415
    from ema_cli.write.uninterrupted import uninterrupted  # noqa: PLC0415

    device = resolve_device(options.device)
    make_lane = lane_maker(device, plan)
    with ExitStack() as unpublished:
        targets = [make_target(output) for output in plan.outputs]
        for target in targets:
            unpublished.callback(target.discard)
            target.open()
        digests = _hash_inputs(plan, listener) if options.sha256 else [None] * len(plan.checkpoints)
        fold_started = time.monotonic()
        folded = fold(
            plan,
            targets,
            make_lane,
            allow_nonfinite=options.allow_nonfinite,
            geometry=options.geometry,
            on_bytes=_progress(listener, "folding", plan.read_bytes),
        )
        fold_seconds = time.monotonic() - fold_started
        written = [target.finish() for target in targets]
        notices = [*plan.notices, *_check_inputs(plan, listener), *_check_fold(plan, folded, listener)]
        fail_if_strict(notices, options)
        measured = Measured(
            folded=folded,
            written=written,
            input_sha256=digests,
            bytes_read=plan.read_bytes,
            seconds=time.monotonic() - started,
            fold_seconds=fold_seconds,
            device=device,
        )
        report = build_report(plan, options, measured, notices, argv)
        with uninterrupted():
            for target in targets:
                target.publish()
            _write_reports(report, options, beside=plan)
    return report


def _write_reports(report: Report, options: Options, beside: Plan | None = None) -> None:
    """Write the report of each output beside it, and the whole report wherever it was asked for."""
    from ema_cli.report.render import render_report  # noqa: PLC0415
    from ema_cli.report.several import of_one  # noqa: PLC0415
    from ema_cli.uptodate import report_path  # noqa: PLC0415
    from ema_cli.write.publish import write_atomically  # noqa: PLC0415

    if beside is not None:
        for k, output in enumerate(beside.outputs):
            write_atomically(report_path(output.path), render_report(of_one(report, k), ".json"))
    for path in options.reports:
        write_atomically(path, render_report(report, path.suffix))


def fail_if_strict(notices: Sequence[Notice], options: Options) -> None:
    """Raise ``StrictWarnings`` if there are warnings and ``--strict`` was given."""
    if options.strict and notices:
        codes = ", ".join(notice.code for notice in notices)
        raise StrictWarnings(f"{plural(len(notices), 'warning')} under --strict, so nothing was written: {codes}")


def _check_inputs(plan: Plan, listener: Listener) -> list[Notice]:
    """Raise if an input changed while it was read; warn if only its name now means another file."""
    notices = []
    for checkpoint in plan.checkpoints:
        if checkpoint.index.raise_if_changed():
            message = (
                f"{quoted(str(checkpoint.path))} was replaced or removed during the run; the old file was averaged"
            )
            notices.append(Notice(code="input-replaced", message=message))
            listener(Warned(notice=notices[-1]))
    return notices


def _check_fold(plan: Plan, folded: FoldOutcome, listener: Listener) -> list[Notice]:
    """Warn of averages that are not finite, which ``--allow-nonfinite`` lets pass, and of copies among the inputs."""
    names = [
        quoted(tensor.name)
        for position, tensor in enumerate(plan.tensors)
        if tensor.action is Action.AVERAGED and not all(found[position].finite for found in folded.statistics)
    ]
    notices = warn_of_copies(plan, folded.contents)
    if names:
        message = f"NaN, infinity or overflow in {shortlist(names)}"
        notices.append(Notice(code="nonfinite-written", message=message))
    for notice in notices:
        listener(Warned(notice=notice))
    return notices


def _progress(listener: Listener, activity: str, total: int) -> Callable[[int], None]:
    return lambda done: listener(Progress(activity=activity, done_bytes=done, total_bytes=total))


def _hash_inputs(plan: Plan, listener: Listener) -> list[str | None]:
    """Return the SHA-256 of every input."""
    indexes = [checkpoint.index for checkpoint in plan.checkpoints]
    count = Counted("hashing", sum(index.size() for index in indexes), listener)
    return [sha256_of_all(index.sources, count.add) for index in indexes]
