"""Build the report from the plan and the results of the run."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any

from ema_cli._version import __version__
from ema_cli.errors import RunWarning
from ema_cli.fold.kernel import lane_name
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared
from ema_cli.records.files import FileRole, Written
from ema_cli.records.fold_results import FoldOutcome, TensorStatistics
from ema_cli.records.garbage import without_collections
from ema_cli.records.plan import Plan, PlannedOutput, PlannedTensor
from ema_cli.records.ranks import RankShare
from ema_cli.records.reported_output import File, Output
from ema_cli.records.series import OrderedCheckpoint, Series
from ema_cli.report import model
from ema_cli.report.input_paths import path_from_output
from ema_cli.report.redaction import redacted_report
from ema_cli.weights.diagnostics import Diagnostics, diagnose


@without_collections()
def build_report(
    plan: Plan,
    options: Options,
    warnings: Sequence[RunWarning],
    argv: Sequence[str],
    *,
    folded: FoldOutcome,
    written: Sequence[Written],
    input_sha256: Sequence[str | None],
    bytes_read: int,
    resumed_tensors: int,
    seconds: float,
    fold_seconds: float,
    ranks: Sequence[RankShare] = (),
) -> model.Report:
    """Return the report of a run with all its averages, without secrets.

    The fields of ``ema_cli.report.model`` explain the numbers.
    """
    report = model.Report(
        schema_version=model.SCHEMA_VERSION,
        tool=model.Tool(name="ema-avg", version=__version__),
        command=model.Command(argv=tuple(argv), options=_plain_options(options), config=options.config),
        inputs=tuple(
            model.Input(
                **input_fields(member),
                sha256=digest,
                content=folded.contents.get(position),
                role=str(member.role),
                path_from_output=path_from_output(member.checkpoint.path, plan.outputs[0].path),
            )
            for position, (member, digest) in enumerate(zip(plan.series.members, input_sha256, strict=True))
        ),
        averages=tuple(
            _average(plan, k, options, statistics, of_output)
            for k, (statistics, of_output) in enumerate(zip(folded.statistics, written, strict=True))
        ),
        geometry=folded.geometry,
        evidence=plan.evidence,
        summary=model.Summary(
            tensors=len(plan.tensors),
            parameters=parameters(plan),
            bytes_read=bytes_read,
            resumed_tensors=resumed_tensors,
            bytes_written=plan.write_bytes,
            seconds=seconds,
            fold_seconds=fold_seconds,
            peak_memory_bytes=peak_memory_bytes(),
            throughput_bytes_per_second=bytes_read / max(fold_seconds, 1e-9),
        ),
        warnings=tuple(warnings),
        environment=replace(
            environment(plan.device, plan.device_reason, lane_name() if plan.device == "cpu" else None),
            ranks=tuple(ranks),
        ),
    )
    return redacted_report(report)


def diagnose_output(series: Series, output: PlannedOutput) -> Diagnostics:
    """Return the diagnostics of one average; ages are in steps if the checkpoints are ordered by step."""
    return diagnose(output.weighting.method, output.weighting.shares, series.timeline)


def describe_continuation(series: Series, output: PlannedOutput) -> model.Continued | None:
    """Return steps and shares of all checkpoints; ``None`` unless the average continues a previous one."""
    if series.continuation is None:
        return None
    return model.Continued(
        checkpoints=len(series.continuation.folded),
        steps=series.timeline.steps,
        shares=output.weighting.shares,
    )


def peak_memory_bytes() -> int | None:
    """Return the highest resident memory of this process; ``None`` if the system does not report it.

    Not from ``getrusage``: its value includes the peak of the parent process, inherited through ``exec``.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(peak.group(1)) * 1024 if peak else None


_OPTION_KEYS = {
    "method": "methods",
    "decay": "decays",
    "one_minus_decay": "one_minus_decays",
    "half_life": "half_lives",
    "sigma_rel": "sigma_rels",
    "report": "reports",
}
"""Keys of ``command.options`` in the report that differ from the name of the option."""


def _plain_options(options: Options) -> dict[str, object]:
    bare = {one.name: one for one in declared(type(options)) if one.single_is_bare}
    names = [field.name for field in fields(options) if field.name not in ("config", "config_warnings")]
    values = {name: getattr(options, name) for name in names}
    values |= {name: one.plain(values[name]) for name, one in bare.items()}
    return {_OPTION_KEYS.get(name, name): _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def input_fields(member: OrderedCheckpoint) -> dict[str, Any]:
    """Return the first fields of ``Input`` for a member of a series."""
    checkpoint, step = member.checkpoint, member.step
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "step": step.value if step else None,
        "step_source": step.source if step else None,
        "bytes": checkpoint.index.size(),
        "fingerprint": checkpoint.fingerprint,
        "key": checkpoint.key,
        "notes": checkpoint.notes,
    }


def tensor_fields(tensor: PlannedTensor) -> dict[str, Any]:
    """Return the fields of ``Tensor`` that the plan has."""
    return {
        "name": tensor.name,
        "dtype": tensor.dtype.name,
        "shape": tensor.shape,
        "action": str(tensor.action),
        "tied_to": tensor.tied_to,
        "why_copied": tensor.why_copied,
        "stands_for": tensor.stands_for,
    }


def _average(
    plan: Plan,
    k: int,
    options: Options,
    statistics: Sequence[TensorStatistics],
    written: Written,
) -> model.Average:
    output = plan.outputs[k]
    return model.Average(
        method=model.MethodUsed(**output.weighting.method.plain()),
        weights=output.weighting.weights,
        diagnostics=diagnose_output(plan.series, output),
        tensors=tuple(
            model.Tensor(
                **tensor_fields(tensor),
                pieces=_pieces(tensor, k),
                norm=measured.norm,
                drift=measured.drift,
                cosine=measured.cosine,
                spread=measured.spread,
                kept=measured.kept,
            )
            for tensor, measured in zip(plan.tensors, statistics, strict=True)
        ),
        output=describe_output(output, written, options.dtype),
        continued=describe_continuation(plan.series, output),
    )


def _pieces(tensor: PlannedTensor, k: int) -> model.TensorPieces | None:
    """Return the pieces of a tensor in average ``k``."""
    pieces = tensor.pieces
    if pieces is None:
        return None
    return model.TensorPieces(axis=pieces.axis, inputs=pieces.inputs, factors=pieces.factors[k])


def describe_output(output: PlannedOutput, written: Written, dtype: str) -> Output:
    """Return the description of a written output; ``dtype`` is the requested element type."""
    return Output(
        path=str(output.path),
        bytes=sum(file.nbytes for file in written.files if file.role is not FileRole.SIDE_FILE),
        sha256=written.sha256,
        modified_ns=written.modified_ns,
        files=_files(written),
        dtype=dtype,
        format=output.format,
        options_fingerprint=output.fingerprint or None,
    )


def _files(written: Written) -> tuple[File, ...]:
    """Return the files of a folder; none if the output is one file."""
    return tuple(
        File(name=f.name, role=str(f.role), bytes=f.nbytes, sha256=f.sha256, modified_ns=f.modified_ns)
        for f in (written.files if written.folder else ())
    )


def parameters(plan: Plan) -> int:
    """Return the number of averaged elements; tied tensors count once."""
    return sum(t.elements for t in plan.tensors if t.action.combines and t.tied_to is None)


def environment(device: str, device_reason: str = "", lane: str | None = None) -> model.Environment:
    """Return the versions of what was imported, and the platform."""
    return model.Environment(
        python=platform.python_version(),
        numpy=_version("numpy") or "",
        torch=_version("torch"),
        safetensors=_version("safetensors") or "",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        device=device,
        device_reason=device_reason or None,
        lane=lane,
    )


def _version(module: str) -> str | None:
    """Return the version of a module that was imported; never imports it."""
    return str(sys.modules[module].__version__) if module in sys.modules else None
