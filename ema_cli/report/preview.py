"""Plans and checkpoints as JSON documents, with the field names of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ema_cli.errors import RunWarning
from ema_cli.options.config_used import ConfigUsed
from ema_cli.records.files import FileRole
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.series import Checkpoint
from ema_cli.report.build import describe_continuation, diagnose_output, input_fields, tensor_fields
from ema_cli.report.model import SCHEMA_VERSION


def plan_document(plan: Plan, warnings: Sequence[RunWarning], config: ConfigUsed | None = None) -> dict[str, object]:
    """Return the document that ``ema-avg plan --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "config": dataclasses.asdict(config) if config else None,
        "order": plan.series.reason,
        "inputs": [
            {
                **input_fields(member),
                "role": str(member.role),
                "ignored": member.checkpoint.ignored,
            }
            for member in plan.series.members
        ],
        "evidence": dataclasses.asdict(plan.evidence) if plan.evidence else None,
        "left_out": [{"path": str(left.path), "reason": left.reason} for left in plan.series.skipped],
        "averages": [
            {
                "method": output.weighting.method.plain(),
                "weights": output.weighting.weights,
                "diagnostics": dataclasses.asdict(diagnose_output(plan.series, output)),
                "continued": _continued(plan, output),
                "output": str(output.path),
                "format": output.format,
                "files": _files(output),
            }
            for output in plan.outputs
        ],
        "tensors": [tensor_fields(tensor) for tensor in plan.tensors],
        "bytes_read": plan.read_bytes,
        "bytes_written": plan.write_bytes,
        "buffer_bytes": plan.buffers.total_bytes,
        "threads": plan.buffers.threads,
        "device": plan.device,
        "device_reason": plan.device_reason or None,
        "warnings": [dataclasses.asdict(warning) for warning in warnings],
    }


def _files(output: PlannedOutput) -> list[dict[str, object]]:
    """Return the files of a folder; none if the output is one file."""
    if not output.folder:
        return []
    weights = [{"name": file.name, "role": str(FileRole.WEIGHTS), "bytes": file.nbytes} for file in output.files]
    for file in () if output.placement is None else output.placement.files:
        role = FileRole.WEIGHTS if file.holds_tensors else FileRole.SIDE_FILE
        weights.append({"name": file.name, "role": str(role), "bytes": file.nbytes})
    return [*weights, *({"name": side.name, "role": str(side.role), "bytes": side.nbytes} for side in output.beside)]


def _continued(plan: Plan, output: PlannedOutput) -> dict[str, object] | None:
    continued = describe_continuation(plan.series, output)
    return dataclasses.asdict(continued) if continued else None


def checkpoint_document(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the document that ``ema-avg inspect --json`` prints for one checkpoint."""
    ties = checkpoint.ties
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "bytes": checkpoint.index.size(),
        "files": [source.name for source in checkpoint.index.sources],
        "fingerprint": checkpoint.fingerprint,
        "key": checkpoint.key,
        "stripped_prefixes": checkpoint.stripped,
        "steps": [dataclasses.asdict(step) for step in checkpoint.steps],
        "metadata": checkpoint.metadata,
        "made_by_ema_avg": checkpoint.made_by_us,
        "unreadable": dict(checkpoint.unreadable),
        "quantized": checkpoint.quantized,
        "ignored": checkpoint.ignored,
        "companions": checkpoint.side_files,
        "notes": checkpoint.notes,
        "tensors": [
            {
                "name": layout.name,
                "dtype": layout.dtype.name,
                "shape": layout.shape,
                "contiguous": layout.strides is None,
                "pieces": layout.pieces,
                "tied_to": ties.get(layout.name),
            }
            for layout in checkpoint.index.layouts
        ],
    }
