"""Checks of the files to write, made before the work: no input is overwritten, and no run fails at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import EmaAvgError, OutputError, UsageError
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import Options
from ema_cli.preflight.replaced_objects import refuse_foreign_objects
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.series import Role
from ema_cli.report.beside import read_report, report_path
from ema_cli.report.render import is_report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, absolute, exists
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.publish import check_writable, raise_output_error


def refuse_inputs_as_outputs(plan: Plan, options: Options) -> None:
    """Raise if a file to write is a checkpoint that was found, averaged or not. Own outputs may be overwritten.

    Raises:
        UsageError: naming the file.

    """
    _refuse_folders_of_inputs(plan)
    series = plan.series
    read = [member.checkpoint for member in series.members if member.role is not Role.AVERAGE]
    protected = {identity for checkpoint in (*series.found, *read) for identity in checkpoint.index.identity}
    skipped = {_identity(entry.path) for entry in series.skipped if not entry.made_by_us}
    for path in _written(plan, options):
        identity = _identity(path)
        if identity is not None and (identity in protected or (identity in skipped and not _is_ours(path))):
            raise UsageError(f"the output {quoted(str(path))} is one of the inputs", hint="choose another name")


def check_destinations(plan: Plan, options: Options) -> None:
    """Raise if an output or a report cannot be written.

    Raises:
        UsageError: two of the files have one name.
        OutputError: a folder is missing or not writable, or an existing file is not an output of this program.

    """
    paths = list(_written(plan, options))
    folders = {output.path for output in plan.outputs if output.folder and isinstance(output.path, Path)}
    if len({absolute(path) for path in paths}) != len(paths):
        raise UsageError("a report has the name of an output or of another report", hint="choose another --report")
    for path in paths:
        if isinstance(path, Path):  # a store refuses when it is written to
            check_writable(path, folder=path in folders)
    for folder in folders:
        _check_folder(folder)
    refuse_foreign_objects(plan)
    if options.force:
        return
    for output in plan.outputs:
        _refuse_report_of_another(output)
    for report in paths[len(plan.outputs) :]:
        if exists(report) and not is_report(report):
            message = f"{quoted(str(report))} exists and is not a report of ema-avg"
            raise OutputError(message, hint="choose another name, or overwrite it with --force")


def _refuse_folders_of_inputs(plan: Plan) -> None:
    """Raise if an output folder contains an input or is inside one: writing it replaces everything in it."""
    series = plan.series
    average = {member.checkpoint.path for member in series.members if member.role is Role.AVERAGE}
    skipped = {entry.path: entry.made_by_us for entry in series.skipped}
    inputs = {checkpoint.path: checkpoint.path in average for checkpoint in (*series.found, *plan.checkpoints)}
    for output in plan.outputs:
        for path, ours in {**skipped, **inputs}.items():
            if output.folder and isinstance(path, Path) and isinstance(output.path, Path):
                _refuse_overlap(output.path, path, ours=ours, skipped=path in skipped)


def _refuse_overlap(output: Path, path: Path, *, ours: bool, skipped: bool) -> None:
    target, real = Path(os.path.realpath(output)), Path(os.path.realpath(path))
    if real == target and not ours and not (skipped and _is_ours(path)):
        raise UsageError(f"the output {quoted(str(output))} is one of the inputs", hint="choose another name")
    if real != target and real.is_relative_to(target):
        message = f"the output folder {quoted(str(output))} contains the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {output / 'averaged'}/")
    if real != target and target.is_relative_to(real):
        message = f"the output {quoted(str(output))} is inside the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {path.parent / output.name}/")


def _check_folder(folder: Path) -> None:
    """Raise if a folder that would be replaced contains folders: then it is not an output."""
    try:
        inner = next((path for path in folder.iterdir() if path.is_dir()), None) if folder.is_dir() else None
    except OSError as error:
        raise_output_error(folder, error)
    if inner is not None:
        message = f"{quoted(str(folder))} cannot be replaced: it contains the folder {quoted(inner.name)}"
        raise OutputError(message, hint="choose another name")


def _refuse_report_of_another(output: PlannedOutput) -> None:
    """Raise if the output ``ema/`` would overwrite the report of ``ema.safetensors``, or the other way round."""
    if isinstance(output.path, Url):
        return
    other = output.path.with_name(f"{output.path.name}.safetensors") if output.folder else output.path.with_suffix("")
    report = read_report(output.path) if other.exists() else None
    if report is not None and report.averages and bool(report.averages[0].output.files) != output.folder:
        name = quoted(report_path(output.path).name)
        raise OutputError(f"{name} is the report of {quoted(str(other))}", hint="choose another name with -o")


def _written(plan: Plan, options: Options) -> Iterator[Location]:
    """Yield everything a run writes: outputs first, then reports."""
    yield from (output.path for output in plan.outputs)
    yield from (report_path(output.path) for output in plan.outputs)
    yield from options.report


def _is_ours(path: Location) -> bool:
    """Whether a file is an output of this program, as a file skipped for its name (``ema.safetensors``) may be."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool())
    except EmaAvgError:
        return False
    checkpoint.index.close()
    return checkpoint.made_by_us


def _identity(path: Location) -> object | None:
    """Return the identity of the file at ``path``, as its source would report it; ``None`` if there is none."""
    if not isinstance(path, Path):
        return path.address
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
