"""Outputs that several processes write together, and those that they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.distributed.file_systems import file_system_of, is_coherent
from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import SharedSingle, part_of
from ema_cli.distributed.shared_folder import SharedFolder
from ema_cli.errors import OutputError, UsageError
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.text import quoted
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.temp_names import temporary_name

SharedTarget = SharedSingle | SharedFolder


def refuse_unshared(plan: Plan, options: Options, hosts: Sequence[str]) -> None:
    """Raise if several processes cannot write an output.

    Raises:
        UsageError: it is in a store or in another format, or ``--resume`` was given.
        OutputError: several hosts would write one file on a file system that does not allow it.

    """
    if options.resume:
        raise UsageError("--resume is not for several ranks", hint="run without it, or in one process")
    for output in plan.outputs:
        name = quoted(str(output.path))
        if not isinstance(output.path, Path):
            raise UsageError(f"several ranks cannot write {name}: it is in a store", hint="write to a shared disk")
        if output.placement is not None:
            raise UsageError(
                f"several ranks cannot write {name} with --format {output.format}",
                hint="write a folder of safetensors (-o DIR/), or run in one process",
            )
        if len(output.files) == 1 and len(set(hosts)) > 1 and not is_coherent(output.path):
            kind = file_system_of(output.path)
            raise OutputError(
                f"{name} is one file on {kind}, where several hosts overwrite each other's parts of a file",
                hint=f"write a folder with a file for each rank: -o {output.path.stem}/ --max-shard-size SIZE",
            )


def make_shared(
    output: PlannedOutput,
    places: list[tuple[int, int]],
    meeting: Meeting,
    old: OldFolder | None = None,
    temp: str | None = None,
) -> SharedTarget:
    """Return the target of an output, which has the temporary name ``temp``, or gets one in rank 0."""
    path = temporary_name(output.local) if temp is None else output.local.with_name(temp)
    if output.folder:
        return SharedFolder(output, old, path, places, meeting)
    (file,) = output.files
    part = part_of(file, places, meeting.rank)
    return SharedSingle(output.local, file, part, meeting, temp=path, read_back_whole=output.read_back_whole)


def name_of(target: SharedTarget) -> str:
    """Return the name of the output until it is published."""
    return target.temp.name
