"""May this plan be carried out? One answer for the run, ``plan``, ``--dry-run`` and ``batch --dry-run``.

The checks, in this order: no output is an input; the device exists; every output and report can be written; existing
outputs are up to date or may be overwritten. A run raises the first obstacle; a dry run shows all of them as warnings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ema_cli.errors import EmaAvgError, OutputError, RunWarning, StrictWarnings, UsageError
from ema_cli.fold.devices import check_gpu
from ema_cli.options.average import Options
from ema_cli.preflight.destinations import check_destinations, refuse_inputs_as_outputs
from ema_cli.preflight.replaced_folders import find_replaced
from ema_cli.preflight.staged_reports import publish_staged_report
from ema_cli.preflight.up_to_date import find_up_to_date
from ema_cli.records.plan import Plan
from ema_cli.report.model import Report
from ema_cli.text import plural, quoted
from ema_cli.write.lock import output_lock
from ema_cli.write.old_folder import OldFolder

_OBSTACLES = ("output-in-the-way", "no-device")
"""Codes of obstacles in a dry run, which no user can accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Whether a plan can be carried out."""

    warnings: tuple[RunWarning, ...]
    """Of the plan, and of the file systems of its outputs."""
    obstacles: Mapping[str, EmaAvgError]
    """Errors that would make a run fail, in the order of the checks, by the code of the warning in a dry run."""
    up_to_date: Report | None
    """The report of the existing outputs, if they are what the plan would write."""
    replaced: Mapping[Path, OldFolder]
    """The folders that are replaced, and what happens to the files in them."""

    def dry_run_warnings(self) -> tuple[RunWarning, ...]:
        """Return the warnings, with each obstacle as a warning."""
        obstacles = (
            RunWarning(code=code, message=error.message, hint=error.hint) for code, error in self.obstacles.items()
        )
        return (*self.warnings, *obstacles)


def preflight(plan: Plan, options: Options, locks: ExitStack | None = None) -> Preflight:
    """Check whether ``plan`` can be carried out; in memory it needs its device alone.

    In a run, ``locks`` receives the locks of the local outputs. They are locked before existing outputs are examined,
    because another run may be writing them. A dry run locks nothing.

    Raises:
        UsageError: the options contradict what was found: an output is an input, two files have one name.
        NothingNew: a previous average would be continued without new checkpoints, and is not what was asked for.
        OutputLocked: another run is writing an output; only with ``locks``.

    """
    obstacles: dict[str, EmaAvgError] = {}
    unlocked: list[RunWarning] = []
    up_to_date = None
    replaced: Mapping[Path, OldFolder] = {}
    try:
        if plan.device != "cpu":
            check_gpu(plan.device)
    except UsageError as error:
        obstacles["no-device"] = error
    if options.in_memory:
        warnings = mark_allowed(plan.warnings, options)
        return Preflight(warnings=warnings, obstacles=obstacles, up_to_date=None, replaced={})
    refuse_inputs_as_outputs(plan, options)
    try:
        check_destinations(plan, options)
        if locks is not None and not obstacles:
            unlocked = _lock_outputs(plan, options, locks)
        up_to_date = find_up_to_date(plan, options)
        replaced = find_replaced(plan) if up_to_date is None else {}
    except OutputError as error:
        obstacles["output-in-the-way"] = error
    warnings = mark_allowed((*plan.warnings, *unlocked), options)
    return Preflight(warnings=warnings, obstacles=obstacles, up_to_date=up_to_date, replaced=replaced)


def mark_allowed(warnings: Iterable[RunWarning], options: Options) -> tuple[RunWarning, ...]:
    """Return the warnings, with those marked that the user accepts (``--allow``)."""
    return tuple(replace(warning, allowed=warning.code in options.allow) for warning in warnings)


def fail_if_strict(warnings: Sequence[RunWarning], options: Options, *, dry_run: bool = False) -> None:
    """Raise if there are warnings that the user has not accepted, and ``--strict`` was given.

    Raises:
        StrictWarnings: naming the codes of the warnings.

    """
    refused = [warning for warning in warnings if not warning.allowed]
    if options.strict and refused:
        codes = list(dict.fromkeys(warning.code for warning in refused))
        effect = "the run would stop" if dry_run else "nothing was written"
        accepted = " ".join(f"--allow {code}" for code in codes if code not in _OBSTACLES)
        raise StrictWarnings(
            f"{plural(len(refused), 'warning')} under --strict, so {effect}: {', '.join(codes)}",
            hint=f"change that, or accept it: {accepted}" if accepted else "",
        )


def _lock_outputs(plan: Plan, options: Options, locks: ExitStack) -> list[RunWarning]:
    """Lock the outputs on disks; warn about those on file systems without locks. Stores have no locks."""
    paths = [output.path for output in plan.outputs if isinstance(output.path, Path)]
    return [
        RunWarning(
            code="no-locks",
            message=f"{quoted(str(path))} is on a file system without locks: ema-avg cannot tell whether another run "
            "is writing it",
        )
        for path in paths
        if not locks.enter_context(output_lock(path, resume=options.resume, before_removal=publish_staged_report))
    ]
