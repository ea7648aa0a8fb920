"""Outputs that several processes write together, and those that they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ema_cli.distributed.file_systems import file_system_of, is_coherent
from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import SharedSingle, part_of
from ema_cli.distributed.shared_folder import SharedFolder
from ema_cli.errors import OutputError, UsageError
from ema_cli.events import Listener, ignore
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.text import quoted, shortlist
from ema_cli.write.file_areas import areas_of
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.target import Target
from ema_cli.write.temp_names import temporary_name


class SharedTarget(Target, Protocol):
    """A target that several processes write together."""

    @property
    def temp(self) -> Path:
        """The path of the output until it is published."""


def refuse_unshared(plan: Plan, options: Options, hosts: Sequence[str]) -> None:
    """Raise if several processes cannot write an output.

    Raises:
        UsageError: it is in a store, has tensors with strides, or cannot be resumed.
        OutputError: several hosts would write one file on a file system that does not allow it.

    """
    for output in plan.outputs:
        name = quoted(str(output.path))
        if not isinstance(output.path, Path):
            raise UsageError(f"several ranks cannot write {name}: it is in a store", hint="write to a shared disk")
        if options.resume and output.placement is not None:
            raise UsageError(
                f"several ranks do not resume {name} with --format {output.format}", hint="run without --resume"
            )
        _refuse_mixed(output)
        if len(set(hosts)) > 1 and not is_coherent(output.path):
            _refuse_shared_files(output, name, file_system_of(output.path))


def _refuse_mixed(output: PlannedOutput) -> None:
    """Raise if several processes would write elements between those of others."""
    if output.placement is None:
        return
    areas = areas_of(output.placement.files, output.placement.tensors)
    mixed = [file.name for file, of_file in zip(output.placement.files, areas, strict=True) if of_file.mixed]
    if mixed:
        raise UsageError(
            f"several ranks cannot write {shortlist(map(quoted, mixed))}: it has tensors that are stored with strides",
            hint="write safetensors, or run in one process",
        )


def _refuse_shared_files(output: PlannedOutput, name: str, kind: str) -> None:
    """Raise if several hosts would write one file."""
    reason = f"on {kind}, where several hosts overwrite each other's parts of a file"
    if output.placement is not None:
        raise OutputError(f"{name} is {reason}", hint="write a folder of safetensors: -o DIR/ --max-shard-size SIZE")
    if len(output.files) == 1:
        hint = f"write a folder with a file for each rank: -o {output.path.stem}/ --max-shard-size SIZE"
        raise OutputError(f"{name} is one file {reason}", hint=hint)


def make_shared(
    output: PlannedOutput,
    places: list[tuple[int, int]],
    meeting: Meeting,
    *,
    old: OldFolder | None = None,
    temp: str | None = None,
    listener: Listener = ignore,
) -> SharedTarget:
    """Return the target of an output, which has the temporary name ``temp``, or gets one in rank 0."""
    path = temporary_name(output.local) if temp is None else output.local.with_name(temp)
    if output.placement is not None:
        from ema_cli.distributed.shared_placed_outputs import make_shared_placed  # noqa: PLC0415 - not the usual format

        return make_shared_placed(output, places, meeting, old=old, temp=path, listener=listener)
    if output.folder:
        return SharedFolder(output, old, path, places, meeting)
    (file,) = output.files
    part = part_of(file, places, meeting.rank)
    return SharedSingle(output.local, file, part, meeting, temp=path, read_back_whole=output.read_back_whole)


def name_of(target: SharedTarget) -> str:
    """Return the name of the output until it is published."""
    return target.temp.name
