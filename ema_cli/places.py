"""Where files will be written: checked before the work, so that nothing is lost and nothing fails at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ema_cli.discover import Found
from ema_cli.errors import EmaAvgError, OutputError, UsageError
from ema_cli.formats.open import open_checkpoint
from ema_cli.options import Options
from ema_cli.records import Plan, Role
from ema_cli.report.render import is_report
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted
from ema_cli.uptodate import report_path
from ema_cli.write.publish import check_place


def refuse_inputs(found: Found, plan: Plan, options: Options) -> None:
    """Raise if a file to write is a checkpoint that was found, folded or not. Earlier outputs may be overwritten.

    Raises:
        UsageError: naming the file.

    """
    if options.output is None:
        return  # a plan without an output writes nothing
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
    paths = list(_written(plan, options))
    if len({path.absolute() for path in paths}) != len(paths):
        raise UsageError("a report has the name of an output or of another report", hint="choose another --report")
    for path in paths:
        check_place(path)
    for path in paths[len(plan.outputs) :]:
        if path.exists() and not options.force and not is_report(path):
            message = f"{quoted(str(path))} exists and is not a report of ema-avg"
            raise OutputError(message, hint="choose another name, or overwrite it with --force")


def _written(plan: Plan, options: Options) -> Iterator[Path]:
    """Yield what a run writes: outputs first, then reports."""
    yield from (output.path for output in plan.outputs)
    yield from (report_path(output.path) for output in plan.outputs)
    yield from options.reports


def _is_ours(path: Path) -> bool:
    """Whether a file is an earlier output: what was left out for its name, such as ``ema.safetensors``, may be one."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool())
    except EmaAvgError:
        return False
    checkpoint.index.close()
    return checkpoint.made_by_us


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode, ``None`` if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
