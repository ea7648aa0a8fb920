"""The output of ``update-bn``: checked and locked before the pass over the data, written and published after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ema_cli._version import __version__
from ema_cli.discovery.changes import check_unchanged
from ema_cli.errors import NothingMatched, OutputError, RunWarning, UsageError
from ema_cli.events import ignore
from ema_cli.formats.huggingface.weight_names import is_index
from ema_cli.options.average import Options
from ema_cli.options.output_options import OUR_METADATA, UPDATED_BATCHES
from ema_cli.planning.linked_files import open_inside
from ema_cli.planning.side_files import plan_side_files
from ema_cli.preflight.destinations import check_copy, refuse_overlap
from ema_cli.preflight.replaced_folders import examine_output_folder
from ema_cli.preflight.staged_reports import publish_staged_report
from ema_cli.records.files import FileRole, SideFile, Written
from ema_cli.records.plan import PlannedOutput
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import report_path
from ema_cli.report.model import BatchNormUpdate, Report
from ema_cli.report.render import render_report
from ema_cli.report.report_files import finished_report
from ema_cli.report.update_report import build_update_report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.locations import identity_of
from ema_cli.text import quoted
from ema_cli.training.batch_norm.norm_layers import NormLayer
from ema_cli.training.batch_norm.output_copy import copy_of
from ema_cli.training.batch_norm.statistic_changes import stored_statistics
from ema_cli.write.lock import output_lock
from ema_cli.write.make_target import make_small, make_target
from ema_cli.write.publication import Finished, publish_all
from ema_cli.write.publish import uninterrupted
from ema_cli.write.target import Target


class RecomputedCopy:
    """Where a copy of an input with recomputed statistics is written.

    Args:
        checkpoint: the input, open.
        options: with the output.
        opened: holds the lock of the output.

    Raises:
        UsageError: the output is in a store, is the input and no output of this program, or cannot be a folder.
        InputRefused: the input cannot be copied.
        OutputError: the output exists, or cannot be written.
        OutputLocked: another run is writing it.

    """

    def __init__(self, checkpoint: Checkpoint, options: Options, opened: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._path = _local(options)
        self.warnings: tuple[RunWarning, ...] = ()
        """About files that the folder cannot get."""
        self._beside: tuple[SideFile, ...] | None = None if options.max_shard_size is None else ()
        planned = copy_of(checkpoint, self._path, {}, {}, beside=self._beside).planned
        if planned.folder:
            side_files, self.warnings = plan_side_files(checkpoint, options)
            self._beside = (*_index_of(checkpoint), *side_files)
            planned = replace(planned, beside=self._beside)
        _refuse_input_as_output(planned, checkpoint)
        check_copy(planned, force=options.force)
        opened.enter_context(output_lock(self._path, before_removal=publish_staged_report))
        self._old = examine_output_folder(planned) if planned.folder else None
        self._force = options.force
        self._refuse_existing(planned)

    def _refuse_existing(self, planned: PlannedOutput) -> None:
        is_there = self._old is not None if planned.folder else os.path.lexists(self._path)
        if is_there and not self._force:
            hint = "choose another name with -o, or overwrite it with --force"
            raise OutputError(f"{quoted(str(self._path))} already exists", hint=hint)

    def write(
        self,
        update: BatchNormUpdate,
        layers: Sequence[NormLayer],
        warnings: Sequence[RunWarning],
        *,
        argv: Sequence[str],
        settings: Mapping[str, object],
        started: float,
    ) -> Report:
        """Write the output and its report, publish both, and return the report.

        Raises:
            OutputError: they cannot be written.
            InputChanged: the input was changed since it was opened.
            InputRefused: a statistic is not finite in the type that the input has it in.

        """
        checkpoint = self._checkpoint
        statistics = stored_statistics(layers, checkpoint)
        metadata = _added(checkpoint, update.batches)
        copy = copy_of(checkpoint, self._path, statistics, metadata, beside=self._beside)
        with ExitStack() as unpublished:
            target = make_target(copy.planned, self._old)
            unpublished.callback(target.discard)
            written = _filled(target, copy.pieces)
            sha256 = sha256_of_all(checkpoint.index.sources)
            replaced_input = check_unchanged([checkpoint], ignore)
            report = build_update_report(
                copy.planned,
                checkpoint,
                update,
                statistics,
                written=written,
                sha256=sha256,
                options=dict(settings),
                argv=argv,
                warnings=(*warnings, *replaced_input),
                seconds=time.monotonic() - started,
            )
            self._refuse_existing(copy.planned)  # the user's code ran meanwhile
            self._publish(target, report, unpublished, copy.planned)
        return report

    def _publish(self, target: Target, report: Report, unpublished: ExitStack, planned: PlannedOutput) -> None:
        """Write the report, and give the output and then the report their names."""
        path = report_path(self._path)
        beside = make_small(path)
        unpublished.callback(beside.discard)
        beside.write(*render_report(report, ".json"))
        with uninterrupted():
            publish_all([Finished(path=self._path, target=target), finished_report(path, beside, planned)])


def _filled(target: Target, pieces: Iterable[tuple[int, memoryview]]) -> Written:
    """Write the pieces of the data section, and return the files; they have no names yet."""
    target.open()
    for offset, piece in pieces:
        target.write(offset, piece)
    return target.finish()


def _local(options: Options) -> Path:
    """Return the path of the output.

    Raises:
        UsageError: it is in a store.

    """
    path = options.output
    if not isinstance(path, Path):
        raise UsageError(f"the output {quoted(str(path))} must be on a disk", hint="-o ema-bn.safetensors")
    return path


def _refuse_input_as_output(planned: PlannedOutput, checkpoint: Checkpoint) -> None:
    """Raise if the output is the input and that is no output of this program, or one of two folders is in the other."""
    path, inside = planned.local, checkpoint.path
    if planned.folder and isinstance(inside, Path):
        refuse_overlap(path, inside.parent if is_index(inside.name) else inside, ours=checkpoint.made_by_us)
    elif not checkpoint.made_by_us and identity_of(path) in checkpoint.index.identity:
        raise UsageError(
            f"the output {quoted(str(path))} is the input, which is no output of ema-avg",
            hint="choose another name with -o",
        )


def _index_of(checkpoint: Checkpoint) -> tuple[SideFile, ...]:
    """Return a copy of the index of the shards of a folder, if it has one."""
    folder = checkpoint.path.parent if is_index(checkpoint.path.name) else checkpoint.path
    name = f"{checkpoint.stem}.safetensors.index.json"
    try:
        with open_inside(folder / name) as source:
            content = source.read(0, source.size())
    except NothingMatched:
        return ()
    return (SideFile(name=name, role=FileRole.INDEX, nbytes=len(content), content=content),)


def _added(checkpoint: Checkpoint, batches: int) -> dict[str, str]:
    """Return the metadata that a copy has in addition."""
    defaults = {"format": "pt", f"{OUR_METADATA}version": __version__}
    missing = {key: value for key, value in defaults.items() if key not in checkpoint.metadata}
    return {**missing, UPDATED_BATCHES: str(batches)}
