"""From the plan and what the fold found to the report."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ema_cli._version import __version__
from ema_cli.errors import RunWarning
from ema_cli.options.average import Options
from ema_cli.records.files import Written
from ema_cli.records.fold_results import FoldOutcome, RunGeometry, TensorStatistics
from ema_cli.records.plan import Action, Plan, PlannedOutput
from ema_cli.records.series import Series
from ema_cli.report import model
from ema_cli.weights.diagnostics import diagnose


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What only the run itself knows."""

    folded: FoldOutcome
    written: Sequence[Written]
    """What was written of each output."""
    input_sha256: Sequence[str | None]
    bytes_read: int
    resumed_tensors: int = 0
    """Taken over from an interrupted run."""
    seconds: float
    fold_seconds: float
    device: str


def build_report(
    plan: Plan, options: Options, measured: Measured, warnings: Sequence[RunWarning], argv: Sequence[str]
) -> model.Report:
    """Return the report of a run with all of its averages."""
    return model.Report(
        schema_version=model.SCHEMA_VERSION,
        tool=model.Tool(name="ema-avg", version=__version__),
        command=model.Command(argv=tuple(argv), options=_plain_options(options)),
        inputs=_inputs(plan, measured),
        averages=tuple(
            _average(plan, output, options, statistics, written)
            for output, statistics, written in zip(
                plan.outputs, measured.folded.statistics, measured.written, strict=True
            )
        ),
        geometry=_geometry(measured.folded.geometry),
        summary=_summary(plan, measured),
        warnings=tuple(model.Warned(code=n.code, message=n.message, hint=n.hint) for n in warnings),
        environment=_environment(measured.device),
    )


def diagnose_output(series: Series, output: PlannedOutput) -> model.DiagnosticsOfWeights:
    """Describe the shares of one average, with ages in steps where the checkpoints are in the order of their steps."""
    found = diagnose(output.weighting.method, output.weighting.shares, series.timeline)
    return model.DiagnosticsOfWeights(**dataclasses.asdict(found))


def describe_continuation(series: Series, output: PlannedOutput) -> model.Continued | None:
    """Tell the shares of all checkpoints, where some of them are inside an earlier output."""
    if series.continuation is None:
        return None
    return model.Continued(
        checkpoints=len(series.continuation.folded),
        steps=series.timeline.steps,
        shares=output.weighting.shares,
    )


def peak_memory_bytes() -> int | None:
    """Return the highest resident memory of this process, ``None`` where the system does not tell.

    ``getrusage`` would count the parent's peak too, which a child inherits through ``exec``.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


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
    names = [field.name for field in dataclasses.fields(options)]
    return {_OPTION_KEYS.get(name, name): _plain(getattr(options, name)) for name in names}


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _inputs(plan: Plan, measured: Measured) -> tuple[model.Input, ...]:
    return tuple(
        model.Input(
            path=str(member.checkpoint.path),
            format=member.checkpoint.format,
            step=member.step.value if member.step else None,
            step_source=member.step.source if member.step else None,
            bytes=member.checkpoint.index.size(),
            fingerprint=member.checkpoint.fingerprint,
            sha256=digest,
            content=measured.folded.contents.get(position),
            role=str(member.role),
        )
        for position, (member, digest) in enumerate(zip(plan.series.members, measured.input_sha256, strict=True))
    )


def _average(
    plan: Plan,
    output: PlannedOutput,
    options: Options,
    statistics: Sequence[TensorStatistics],
    written: Written,
) -> model.Average:
    return model.Average(
        method=model.MethodUsed(**output.weighting.method.plain()),
        weights=output.weighting.weights,
        diagnostics=diagnose_output(plan.series, output),
        tensors=tuple(
            model.Tensor(
                name=tensor.name,
                dtype=tensor.dtype.name,
                shape=tensor.shape,
                action=str(tensor.action),
                norm=found.norm,
                drift=found.drift,
                cosine=found.cosine,
                spread=found.spread,
                tied_to=tensor.tied_to,
                why_copied=tensor.why_copied,
                stands_for=tensor.stands_for,
            )
            for tensor, found in zip(plan.tensors, statistics, strict=True)
        ),
        output=model.Output(
            path=str(output.path),
            bytes=output.nbytes,
            sha256=written.sha256,
            modified_ns=written.modified_ns,
            files=_files(written),
            dtype=options.dtype,
        ),
        continued=describe_continuation(plan.series, output),
    )


def _files(written: Written) -> tuple[model.File, ...]:
    """Return the files of a folder; one file alone is the output itself."""
    return tuple(
        model.File(name=f.name, role=str(f.role), bytes=f.nbytes, sha256=f.sha256, modified_ns=f.modified_ns)
        for f in (written.files if written.folder else ())
    )


def _geometry(found: RunGeometry | None) -> model.Geometry | None:
    return model.Geometry(**dataclasses.asdict(found)) if found is not None else None


def _summary(plan: Plan, measured: Measured) -> model.Summary:
    return model.Summary(
        tensors=len(plan.tensors),
        parameters=parameters(plan),
        bytes_read=measured.bytes_read,
        resumed_tensors=measured.resumed_tensors,
        bytes_written=plan.write_bytes,
        seconds=measured.seconds,
        fold_seconds=measured.fold_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        throughput_bytes_per_second=measured.bytes_read / max(measured.fold_seconds, 1e-9),
    )


def parameters(plan: Plan) -> int:
    """Return the number of averaged elements, tied tensors once."""
    return sum(t.elements for t in plan.tensors if t.action is Action.AVERAGED and t.tied_to is None)


def _environment(device: str) -> model.Environment:
    return model.Environment(
        python=platform.python_version(),
        numpy=_version("numpy") or "",
        torch=_version("torch"),
        safetensors=_version("safetensors") or "",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        device=device,
    )


def _version(module: str) -> str | None:
    """Return the version of a module if it was needed, without importing it."""
    return str(sys.modules[module].__version__) if module in sys.modules else None
