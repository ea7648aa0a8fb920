"""The output of ``update-bn``: checked and locked before the pass over the data, written and published after it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ema_cli._version import __version__
from ema_cli.discovery.changes import check_unchanged
from ema_cli.errors import OutputError, RunWarning, UsageError
from ema_cli.events import ignore
from ema_cli.options.average import Options
from ema_cli.options.output_options import OUR_METADATA, UPDATED_BATCHES
from ema_cli.preflight.destinations import check_copy
from ema_cli.preflight.staged_reports import publish_staged_report
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import report_path
from ema_cli.report.model import BatchNormUpdate, Report
from ema_cli.report.render import render_report
from ema_cli.report.update_report import build_update_report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.storage.locations import identity_of
from ema_cli.text import quoted
from ema_cli.training.norm_layers import NormLayer
from ema_cli.training.output_copy import copy_of, empty_copy
from ema_cli.training.statistic_changes import stored_statistics
from ema_cli.write.lock import output_lock
from ema_cli.write.make_target import make_small, make_target
from ema_cli.write.publication import Finished, publish_all
from ema_cli.write.publish import uninterrupted


class RecomputedCopy:
    """Where a copy of an input with recomputed statistics is written.

    Args:
        checkpoint: the input, open.
        options: with the output.
        opened: holds the lock of the output.

    Raises:
        UsageError: the output is in a store, or is the input and no output of this program.
        OutputError: it exists, or cannot be written.
        OutputLocked: another run is writing it.

    """

    def __init__(self, checkpoint: Checkpoint, options: Options, opened: ExitStack) -> None:
        self._checkpoint, self._options = checkpoint, options
        self._path = _local(options)
        _refuse_input_as_output(self._path, checkpoint)
        check_copy(empty_copy(self._path), force=options.force)
        opened.enter_context(output_lock(self._path, before_removal=publish_staged_report))
        if os.path.lexists(self._path) and not options.force:
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
        replaced = stored_statistics(layers, checkpoint)
        metadata = {"format": "pt", f"{OUR_METADATA}version": __version__, **checkpoint.metadata}
        copy = copy_of(checkpoint, self._path, replaced, {**metadata, UPDATED_BATCHES: str(update.batches)})
        with ExitStack() as unpublished:
            target = make_target(copy.planned)
            unpublished.callback(target.discard)
            target.open()
            for offset, piece in copy.pieces:
                target.write(offset, piece)
            written = target.finish()
            sha256 = sha256_of_all(checkpoint.index.sources)
            replaced_input = check_unchanged([checkpoint], ignore)
            report = build_update_report(
                copy.planned,
                checkpoint,
                update,
                replaced,
                written=written,
                sha256=sha256,
                options=dict(settings),
                argv=argv,
                warnings=(*warnings, *replaced_input),
                seconds=time.monotonic() - started,
            )
            beside = make_small(report_path(self._path))
            unpublished.callback(beside.discard)
            beside.write(render_report(report, ".json"))
            with uninterrupted():
                publish_all(
                    [Finished(path=self._path, target=target), Finished(path=report_path(self._path), target=beside)]
                )
        return report


def _local(options: Options) -> Path:
    path = options.output
    if not isinstance(path, Path):
        raise UsageError(f"the output {quoted(str(path))} must be on a disk", hint="-o ema-bn.safetensors")
    if options.max_shard_size is not None:
        raise UsageError(f"the output {quoted(str(path))} must be a file", hint=f"-o {path}.safetensors")
    return path


def _refuse_input_as_output(path: Path, checkpoint: Checkpoint) -> None:
    """Raise if the output is the input, unless this program wrote that."""
    if not checkpoint.made_by_us and identity_of(path) in checkpoint.index.identity:
        message = f"the output {quoted(str(path))} is the input, which is no output of ema-avg"
        raise UsageError(message, hint="choose another name with -o")
