"""Where files will be written: checked before the work, so that nothing is lost and nothing fails at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.discovery.checkpoints import Found
from ema_cli.errors import EmaAvgError, OutputError, UsageError
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.series import Role
from ema_cli.report.beside import read_report, report_path
from ema_cli.report.render import is_report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, absolute, exists
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.publish import check_place, raise_output_error


def refuse_inputs(found: Found, plan: Plan, options: Options) -> None:
    """Raise if a file to write is a checkpoint that was found, folded or not. Earlier outputs may be overwritten.

    Raises:
        UsageError: naming the file.

    """
    if options.output is None:
        return  # a plan without an output writes nothing
    _refuse_folders_of_inputs(found, plan)
    read = [member.checkpoint for member in plan.series.members if member.role is not Role.AVERAGE]
    protected = {identity for checkpoint in (*found.checkpoints, *read) for identity in checkpoint.index.identity}
    left_out = {_identity(left.path) for left in found.left_out if not left.ours}
    for path in _written(plan, options):
        identity = _identity(path)
        if identity is not None and (identity in protected or (identity in left_out and not _is_ours(path))):
            raise UsageError(f"the output {quoted(str(path))} is one of the inputs", hint="choose another name")


def check_places(plan: Plan, options: Options) -> None:
    """Raise if an output or a report cannot be put where it belongs.

    Raises:
        UsageError: two of the files have one name.
        OutputError: a folder is missing or not writable, or something is in the way that is not ours.

    """
    places = list(_written(plan, options))
    folders = {output.path for output in plan.outputs if output.folder and isinstance(output.path, Path)}
    if len({absolute(place) for place in places}) != len(places):
        raise UsageError("a report has the name of an output or of another report", hint="choose another --report")
    paths = [place for place in places if isinstance(place, Path)]  # a store says no when it is written to
    for path in paths:
        check_place(path, folder=path in folders)
    for folder in folders:
        _check_folder(folder)
    if not options.force:
        for output in plan.outputs:
            _refuse_report_of_another(output)
    for report in places[len(plan.outputs) :]:
        if not options.force and exists(report) and not is_report(report):
            message = f"{quoted(str(report))} exists and is not a report of ema-avg"
            raise OutputError(message, hint="choose another name, or overwrite it with --force")


def _refuse_folders_of_inputs(found: Found, plan: Plan) -> None:
    """Raise if a folder to write holds an input, or lies in one: it would be replaced with all that is in it."""
    average = {member.checkpoint.path for member in plan.series.members if member.role is Role.AVERAGE}
    left_out = {left.path: left.ours for left in found.left_out}
    inputs = {checkpoint.path: checkpoint.path in average for checkpoint in (*found.checkpoints, *plan.checkpoints)}
    for output in plan.outputs:
        for path, ours in {**left_out, **inputs}.items():
            if output.folder and isinstance(path, Path) and isinstance(output.path, Path):
                _refuse_overlap(output.path, path, ours=ours, left_out=path in left_out)


def _refuse_overlap(output: Path, path: Path, *, ours: bool, left_out: bool) -> None:
    place, real = Path(os.path.realpath(output)), Path(os.path.realpath(path))
    if real == place and not ours and not (left_out and _is_ours(path)):
        raise UsageError(f"the output {quoted(str(output))} is one of the inputs", hint="choose another name")
    if real != place and real.is_relative_to(place):
        message = f"the output {quoted(str(output))} is a folder that holds the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {output / 'averaged'}/")
    if real != place and place.is_relative_to(real):
        message = f"the output {quoted(str(output))} lies in the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {path.parent / output.name}/")


def _check_folder(folder: Path) -> None:
    """Raise if a folder that would be replaced has folders in it: outputs have none, so those are somebody's.

    Raises:
        OutputError: naming one.

    """
    try:
        inner = next((path for path in folder.iterdir() if path.is_dir()), None) if folder.is_dir() else None
    except OSError as error:
        raise_output_error(folder, error)
    if inner is not None:
        message = f"{quoted(str(folder))} cannot be replaced: it holds the folder {quoted(inner.name)}"
        raise OutputError(message, hint="choose another name")


def _refuse_report_of_another(output: PlannedOutput) -> None:
    """Raise if ``ema/`` would take the report of ``ema.safetensors``, or the other way round."""
    if isinstance(output.path, Url):
        return
    other = output.path.with_name(f"{output.path.name}.safetensors") if output.folder else output.path.with_suffix("")
    report = read_report(output.path) if other.exists() else None
    if report is not None and report.averages and bool(report.averages[0].output.files) != output.folder:
        name = quoted(report_path(output.path).name)
        raise OutputError(f"{name} is the report of {quoted(str(other))}", hint="choose another name with -o")


def _written(plan: Plan, options: Options) -> Iterator[Location]:
    """Yield what a run writes: outputs first, then reports."""
    yield from (output.path for output in plan.outputs)
    yield from (report_path(output.path) for output in plan.outputs)
    yield from options.report


def _is_ours(path: Location) -> bool:
    """Whether a file is an earlier output: what was left out for its name, such as ``ema.safetensors``, may be one."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool())
    except EmaAvgError:
        return False
    checkpoint.index.close()
    return checkpoint.made_by_us


def _identity(path: Location) -> object | None:
    """Return what the source of a file there would be known by, ``None`` if there is no such file here."""
    if not isinstance(path, Path):
        return path.address
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
