"""Build the report of an output with recomputed BatchNorm statistics: the mean of one input, with other statistics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ema_cli._version import __version__
from ema_cli.errors import RunWarning
from ema_cli.records.files import Written
from ema_cli.records.plan import Action, PlannedOutput
from ema_cli.records.series import Checkpoint
from ema_cli.report import model
from ema_cli.report.build import describe_output, environment, peak_memory_bytes
from ema_cli.report.input_paths import path_from_output
from ema_cli.report.redaction import redacted_report
from ema_cli.storage.extents import TensorLayout
from ema_cli.weights.diagnostics import Diagnostics

METHOD = "update-bn"
"""The name of the method in such a report; the metadata of the output have that of the average."""
_OF_ONE = Diagnostics(
    effective_checkpoints=1.0,
    mean_age=0.0,
    mean_age_unit="checkpoint",
    first=1.0,
    last=1.0,
    largest=1.0,
    implied_lr=(1.0,),
)


def build_update_report(
    planned: PlannedOutput,
    checkpoint: Checkpoint,
    update: model.BatchNormUpdate,
    recomputed: Collection[str],
    *,
    written: Written,
    sha256: str,
    options: dict[str, object],
    argv: Sequence[str],
    warnings: Sequence[RunWarning],
    seconds: float,
) -> model.Report:
    """Return the report of a written output, without secrets.

    Args:
        planned: the output.
        checkpoint: the input.
        update: what was recomputed.
        recomputed: the names of the tensors with other values than in the input.
        written: the files of the output.
        sha256: digest of the input.
        options: of the command, by name.
        argv: the command line.
        warnings: of the run.
        seconds: since the run began.

    """
    layouts = checkpoint.index.layouts
    report = model.Report(
        schema_version=model.SCHEMA_VERSION,
        tool=model.Tool(name="ema-avg", version=__version__),
        command=model.Command(argv=tuple(argv), options=options),
        inputs=(_input(checkpoint, sha256, planned),),
        averages=(
            model.Average(
                method=model.MethodUsed(name=METHOD, decay=None, half_life=None, per=None, init=None),
                weights=(1.0,),
                diagnostics=_OF_ONE,
                tensors=tuple(_tensor(layout, recomputed) for layout in layouts),
                output=describe_output(planned, written, "same"),
            ),
        ),
        summary=model.Summary(
            tensors=len(layouts),
            parameters=sum(layout.elements for layout in layouts if layout.dtype.averaged),
            bytes_read=3 * checkpoint.index.size(),  # into the model, into the copy, for the digest
            bytes_written=planned.nbytes,
            seconds=seconds,
            fold_seconds=0.0,
            peak_memory_bytes=peak_memory_bytes(),
            throughput_bytes_per_second=0.0,
        ),
        warnings=tuple(warnings),
        environment=environment(update.device or "cpu"),
        batch_norm=update,
    )
    return redacted_report(report)


def _input(checkpoint: Checkpoint, sha256: str, planned: PlannedOutput) -> model.Input:
    return model.Input(
        path=str(checkpoint.path),
        format=checkpoint.format,
        step=None,
        step_source=None,
        bytes=checkpoint.index.size(),
        fingerprint=checkpoint.fingerprint,
        sha256=sha256,
        key=checkpoint.key,
        notes=checkpoint.notes,
        path_from_output=path_from_output(checkpoint.path, planned.path),
    )


def _tensor(layout: TensorLayout, recomputed: Collection[str]) -> model.Tensor:
    new = layout.name in recomputed
    return model.Tensor(
        name=layout.name,
        dtype=layout.dtype.name,
        shape=layout.shape,
        action=str(Action.RECOMPUTED if new else Action.COPIED),
        norm=None,
        drift=None,
        cosine=None,
        tied_to=None,
        why_copied="" if new else "copied from the input",
    )
