"""Carry out a plan: fold, check for changed inputs, and publish the outputs and their reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.discovery.changes import blaming_changed_inputs, check_unchanged
from ema_cli.distributed.alone import Alone
from ema_cli.errors import RunWarning
from ema_cli.events import Info, Listener, Progress, WarningIssued, ignore
from ema_cli.fold.address_space import check_address_space
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold
from ema_cli.fold.state import bytes_of
from ema_cli.options.average import Options
from ema_cli.planning.warnings import warn_of_same_weights
from ema_cli.preflight.check_plan import fail_if_strict, mark_allowed
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.records.plan import Action, Plan
from ema_cli.report.build import build_report
from ema_cli.report.model import Report
from ema_cli.report.report_files import stage_reports
from ema_cli.text import human_bytes, quoted, shortlist
from ema_cli.write.make_target import is_spooled, stop_uploads
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.publication import Finished, publish_all
from ema_cli.write.publish import uninterrupted
from ema_cli.write.target import Target

if TYPE_CHECKING:
    from ema_cli.write.resumption import Resumption


def carry_out(
    plan: Plan,
    options: Options,
    listener: Listener,
    argv: Sequence[str],
    started: float,
    *,
    replaced: Mapping[Path, OldFolder],
    ranks: Alone,
) -> Report:
    """Fold the checkpoints, write the outputs and their reports, and return the report of all.

    The report lists the command line ``argv``; ``started`` is the monotonic time at which the run began, in seconds;
    the outputs replace the folders ``replaced``; other ``ranks`` may fold a part.

    Raises:
        EmaAvgError: see ``ema_cli.errors``; then no output was changed, unless the message lists what is new.

    """
    check_address_space(plan.buffers, len(plan.outputs))
    read_bytes = plan.read_bytes
    make_lane = lane_maker(ranks.device(plan.device), plan)
    with ExitStack() as unpublished:
        targets, resumption = _open_targets(plan, options, listener, unpublished, replaced=replaced, ranks=ranks)
        ranks.begin()
        unpublished.push(ranks.leave)
        done = resumption.done if resumption else []
        digests = ranks.hash_inputs(plan, listener) if options.sha256 else [None] * len(plan.checkpoints)
        fold_started = time.monotonic()
        with blaming_changed_inputs(plan.checkpoints):
            folded = fold(
                plan,
                targets,
                make_lane,
                allow_nonfinite=options.allow_nonfinite,
                measure_geometry=options.geometry == "sample",
                done=done,
                on_tensor=resumption.journal.add if resumption else None,
                on_stop=lambda: stop_uploads(targets),
                on_bytes=lambda read: listener(
                    Progress(activity="folding", done_bytes=read + ranks.others_bytes, total_bytes=read_bytes)
                ),
                stretch=ranks.stretch,
                merge=ranks.merge,
            )
        fold_seconds = time.monotonic() - fold_started
        written = [target.finish() for target in targets]
        report = build_report(
            plan,
            options,
            check_fold(plan, folded, options, listener),
            argv,
            folded=folded,
            written=written,
            input_sha256=digests,
            bytes_read=read_bytes - bytes_of(plan, done),
            resumed_tensors=len(done),
            seconds=time.monotonic() - started,
            fold_seconds=fold_seconds,
            ranks=ranks.shares,
        )
        reports = stage_reports(plan, report, options, unpublished)
        with uninterrupted():
            publish_all(_in_order(plan, targets, reports))
            if resumption:
                resumption.finish()
    ranks.published()
    return report


def _open_targets(
    plan: Plan,
    options: Options,
    listener: Listener,
    unpublished: ExitStack,
    *,
    replaced: Mapping[Path, OldFolder],
    ranks: Alone,
) -> tuple[Sequence[Target], Resumption | None]:
    """Open the outputs; ``unpublished`` discards them. With ``--resume``, continue an interrupted run."""
    if not options.resume:
        old = [replaced.get(output.path) if isinstance(output.path, Path) else None for output in plan.outputs]
        targets = [
            ranks.make_target(output, folder, listener) for output, folder in zip(plan.outputs, old, strict=True)
        ]
        _report_spooling(plan, listener)
        for target in targets:
            unpublished.callback(target.discard)
            target.open()
        return targets, None
    return ranks.resume(plan, options, listener, unpublished)


def _in_order(plan: Plan, targets: Sequence[Target], reports: Sequence[Finished]) -> list[Finished]:
    """Return each output with its report after it, then the further reports: a failure leaves few that do not match."""
    outputs = [Finished(path=output.path, target=target) for output, target in zip(plan.outputs, targets, strict=True)]
    pairs = [file for pair in zip(outputs, reports, strict=False) for file in pair]
    return [*pairs, *reports[len(outputs) :]]


def _report_spooling(plan: Plan, listener: Listener) -> None:
    for output in plan.outputs:
        if is_spooled(output):
            import tempfile  # noqa: PLC0415 - most outputs are files

            size = human_bytes(sum(file.nbytes for file in output.files))
            first = f"written to {quoted(tempfile.gettempdir())} first ({size})"
            listener(Info(message=f"{quoted(str(output.path))} is {first}, and uploaded when it is complete"))


def check_fold(plan: Plan, folded: FoldOutcome, options: Options, listener: Listener) -> tuple[RunWarning, ...]:
    """Check the inputs for changes and the fold for warnings, which are reported; return all warnings of the run.

    Raises:
        InputChanged: a checkpoint was written to while it was read.
        StrictWarnings: there are warnings, and ``--strict`` was given.

    """
    found = mark_allowed([*check_unchanged(plan.checkpoints, ignore), *_warn_of_fold(plan, folded)], options)
    for warning in found:
        listener(WarningIssued(warning=warning))
    warnings = (*plan.warnings, *found)
    fail_if_strict(warnings, options)
    return warnings


def _warn_of_fold(plan: Plan, folded: FoldOutcome) -> list[RunWarning]:
    """Warn of averages that are not finite (``--allow-nonfinite``), and of inputs with the same weights."""
    names = [
        quoted(tensor.name)
        for position, tensor in enumerate(plan.tensors)
        if tensor.action is Action.AVERAGED
        and not all(found[position].finite or found[position].kept for found in folded.statistics)
    ]
    warnings = warn_of_same_weights(plan, folded.contents)
    if names:
        message = f"NaN, infinity or overflow in {shortlist(names)}"
        warnings.append(RunWarning(code="nonfinite-written", message=message))
    return warnings
