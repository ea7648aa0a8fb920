"""Checks of the files to write, made before the work: no input is overwritten, and no run fails at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ema_cli.errors import EmaAvgError, NothingMatched, OutputError, UsageError
from ema_cli.options.average import Options
from ema_cli.preflight.replaced_folders import is_our_output
from ema_cli.preflight.replaced_objects import refuse_foreign_objects
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.series import Role
from ema_cli.report.beside import parse_report, read_report, report_path
from ema_cli.report.report_files import refuse_foreign_file
from ema_cli.storage.locations import Location, absolute, open_source
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.write.publish import Writing
from ema_cli.write.temp_names import longest_name
from ema_cli.write.writable import check_writable

_LARGEST_BYTES = 1 << 24
_OR_FORCE = "choose another name, or overwrite it with --force"


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
        if identity is not None and (identity in protected or (identity in skipped and not is_our_output(path))):
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
    for output in plan.outputs:
        _refuse_long_name(output)
    for path in paths:
        if isinstance(path, Path):  # a store refuses when it is written to
            check_writable(path, folder=path in folders)
    refuse_foreign_objects(plan)
    for output in plan.outputs:
        _check_report(output, force=options.force)
    for report in () if options.force else options.report:
        refuse_foreign_file(report, _OR_FORCE)


def check_copy(output: PlannedOutput, *, force: bool) -> None:
    """Raise if an output on a disk that is no average of a plan, or its report, cannot be written.

    Raises:
        OutputError: as ``check_destinations`` does.

    """
    _refuse_long_name(output)
    check_writable(output.local, folder=output.folder)
    check_writable(report_path(output.local))
    _check_report(output, force=force)


def _check_report(output: PlannedOutput, *, force: bool) -> None:
    _refuse_report_of_another(output)
    _check_report_beside(output, force=force)


def _refuse_long_name(output: PlannedOutput) -> None:
    """Raise if the name of an output leaves no room for that of its report."""
    if isinstance(output.path, Url):
        return
    name, report, longest = output.path.name, report_path(output.path).name, longest_name(output.path.parent)
    size, of_report = len(os.fsencode(name)), len(os.fsencode(report))
    if size <= longest < of_report:
        raise OutputError(
            f"the report of {quoted(str(output.path))} would have a name of {of_report} bytes, {quoted(report)}; the "
            f"file system takes names of {longest}",
            hint=f"choose a name of at most {size - of_report + longest} bytes with -o",
        )


def _check_report_beside(output: PlannedOutput, *, force: bool) -> None:
    """Raise if the report of an output would overwrite a foreign file; --force overwrites what may be a damaged report.

    A folder beside a damaged report is refused for its files.
    """
    report = report_path(output.path)
    if isinstance(report, Url):
        if not force:
            refuse_foreign_file(report, _OR_FORCE)
        return
    try:
        parse_report(report)
    except NothingMatched:
        return
    except EmaAvgError as error:
        if not isinstance(error.__cause__, ValueError):
            raise OutputError(error.message, hint="move it, or choose another name with -o") from error
        if not _is_damaged_json(report):
            refuse_foreign_file(report, "move it, or choose another name with -o")
        elif not force and not output.folder:
            refuse_foreign_file(report, _OR_FORCE)


def _is_damaged_json(location: Location) -> bool:
    """Whether a file of the usual size of a report is no JSON document: then it may be what is left of a report."""
    try:
        with open_source(location) as source:
            json.loads(source.read(0, source.size()) if source.size() <= _LARGEST_BYTES else b"{}")
    except EmaAvgError:
        return False
    except (ValueError, RecursionError):
        return True
    return False


def _refuse_folders_of_inputs(plan: Plan) -> None:
    """Raise if an output folder contains an input or is inside one: writing it replaces everything in it."""
    series = plan.series
    average = {member.checkpoint.path for member in series.members if member.role is Role.AVERAGE}
    skipped = {entry.path: entry.made_by_us for entry in series.skipped}
    inputs = {checkpoint.path: checkpoint.path in average for checkpoint in (*series.found, *plan.checkpoints)}
    for output in plan.outputs:
        for path, ours in {**skipped, **inputs}.items():
            if output.folder and isinstance(path, Path) and isinstance(output.path, Path):
                refuse_overlap(output.path, path, ours=ours, skipped=path in skipped)


def refuse_overlap(output: Path, path: Path, *, ours: bool, skipped: bool = False) -> None:
    """Raise if one of two folders is in the other; or if they are the same, unless that may be replaced.

    Args:
        output: the folder to write.
        path: the folder of an input.
        ours: the input is an output of this program.
        skipped: it is not used; then its metadata decide whether it is an output of this program.

    Raises:
        UsageError: with a name that could be used.

    """
    target, real = Path(os.path.realpath(output)), Path(os.path.realpath(path))
    if real == target and not ours and not (skipped and is_our_output(path)):
        raise UsageError(f"the output {quoted(str(output))} is one of the inputs", hint="choose another name")
    if real != target and real.is_relative_to(target):
        message = f"the output folder {quoted(str(output))} contains the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {output / 'averaged'}/")
    if real != target and target.is_relative_to(real):
        message = f"the output {quoted(str(output))} is inside the input {quoted(str(path))}"
        raise UsageError(message, hint=f"-o {path.parent / output.name}/")


def _refuse_report_of_another(output: PlannedOutput) -> None:
    """Raise if the output ``ema/`` would overwrite the report of ``ema.safetensors``, or the other way round.

    ``ema.pt`` and ``ema.pt.safetensors`` have one report, too.
    """
    if isinstance(output.path, Url):
        return
    name = output.path.name
    is_bare = output.folder or not name.endswith(".safetensors")
    other = output.path.with_name(f"{name}.safetensors" if is_bare else name.removesuffix(".safetensors"))
    with Writing(output.path):
        is_there = other.exists()
    report = read_report(output.path) if is_there else None
    written = report.averages[0].output if report is not None else None
    if written is not None and (bool(written.files) != output.folder or Path(written.path).name == other.name):
        name = quoted(report_path(output.path).name)
        raise OutputError(f"{name} is the report of {quoted(str(other))}", hint="choose another name with -o")


def _written(plan: Plan, options: Options) -> Iterator[Location]:
    """Yield everything a run writes: outputs first, then reports."""
    yield from (output.path for output in plan.outputs)
    yield from (report_path(output.path) for output in plan.outputs)
    yield from options.report


def _identity(path: Location) -> object | None:
    """Return the identity of the file at ``path``, as its source would report it; ``None`` if there is none."""
    if not isinstance(path, Path):
        return path.address
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
