"""The plan on the terminal: the checkpoints with their shares, each average, the bytes to read and write."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

from ema_cli.cli.table import Cell, Column, Table, numbers, whole_name
from ema_cli.cli.wrapping import Styled
from ema_cli.options.average import Options
from ema_cli.records.plan import Action, Plan, PlannedOutput
from ema_cli.records.series import Checkpoint, OrderedCheckpoint, Role, Skipped
from ema_cli.records.series_evidence import LEAST_ELEMENTS
from ema_cli.report import words
from ema_cli.report.build import diagnose_output, parameters
from ema_cli.report.model import MethodUsed
from ema_cli.report.tables import ROLES, cut_middle
from ema_cli.storage.locations import Location, common_folder, labels
from ema_cli.text import human_bytes, number, percent, plural, quoted, safe_text, shortlist

_MOST_ROWS = 24
_MOST_SHARES = 6
"""Averages with their shares side by side; of more, only the comparison is shown."""
_BAR_WIDTH = 12
_SHARE_COLUMNS = (Column(title="from", optional=True), *numbers("share", "LR scale"), Column(optional=True))
_UNDEFINED = "-"
_MOST_IGNORED = 100
_FEW = 3
"""Skipped inputs that are named one by one; of more with the same reason, the number is shown."""


def plan_parts(plan: Plan, options: Options, *, verbose: bool) -> Iterator[str | Table]:
    """Yield the order, the shares, the averages, and the bytes to read and write."""
    checkpoints = plan.checkpoints
    folder = common_folder([checkpoint.path for checkpoint in checkpoints])
    yield _headline(plan, folder)
    yield from _names_of_weights(checkpoints)
    if verbose:
        yield from _ignored(checkpoints)
    if len(plan.outputs) <= _MOST_SHARES or verbose:
        yield _shares_table(plan, folder, all_rows=verbose)
    else:
        yield f"shares of {len(plan.outputs)} averages: -v shows them"
    yield from skipped_lines(plan.series.skipped, verbose=verbose)
    if len(plan.outputs) == 1:
        yield from _average_lines(plan, plan.outputs[0])
    else:
        yield _comparison(plan)
    yield from _evidence(plan, options)
    yield from _work(plan)


def _evidence(plan: Plan, options: Options) -> Iterator[str]:
    """Yield what the sampled weights show, or why nothing was sampled."""
    if plan.evidence is not None:
        yield f"weights compared: {words.evidence(plan.evidence)}"
    elif not options.probe:
        yield "weights compared: no (--no-probe)"
    elif sum(t.elements for t in plan.tensors if t.action is Action.AVERAGED) < LEAST_ELEMENTS:
        yield f"weights compared: no (fewer than {LEAST_ELEMENTS:,})"


def skipped_lines(entries: Sequence[Skipped], *, verbose: bool) -> Iterator[str]:
    """Name the skipped inputs; many with the same reason are counted."""
    by_reason: dict[str, list[Location]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(entry.path)
    for reason, paths in by_reason.items():
        if len(paths) <= _FEW or verbose:
            yield from (f"skipped {quoted(str(path))}: {reason}" for path in paths)
        else:
            names = shortlist((quoted(path.name) for path in paths), most=2)
            yield f"skipped {plural(len(paths), 'file')} ({names}): {reason}"


def _headline(plan: Plan, folder: str) -> str:
    members = plan.series.members
    formats = shortlist(sorted({m.checkpoint.format for m in members if m.role is not Role.AVERAGE}))
    new = sum(member.role is Role.CHECKPOINT for member in members)
    continuation = plan.series.continuation
    count = plural(new, "checkpoint" if continuation is None else "new checkpoint")
    line = ", ".join(
        filter(None, (f"{count} in {safe_text(_shortest(folder))}", formats, f"ordered {plan.series.reason}"))
    )
    if continuation is None:
        return line
    inside = plural(len(continuation.folded), "checkpoint")
    return f"{line}; continued from the average of {inside} in {quoted(str(continuation.path))}"


def _work(plan: Plan) -> Iterator[str]:
    """Yield how many tensors are averaged, copied and dropped, and how many bytes are read and written."""
    copied = Counter(tensor.why_copied for tensor in plan.tensors if tensor.action is Action.COPIED)
    reasons = "; ".join(f"{count:,} {why}" if len(copied) > 1 else why for why, count in copied.items())
    counts = words.tensor_counts(tensor.action for tensor in plan.tensors) + (f" ({reasons})" if reasons else "")
    yield f"{counts}; {plural(parameters(plan), 'parameter')}"
    yield from _ranks(plan)
    dropped = [f"{quoted(name)} ({quoted(tensor.name)})" for tensor in plan.tensors for name in tensor.stands_for]
    if dropped:
        yield f"dropped, tied to another tensor: {shortlist(dropped)}"
    yield (
        f"reads {human_bytes(plan.read_bytes)}; {words.device(plan.device, plan.device_reason)}, "
        f"{plural(plan.buffers.threads, 'thread')}, {human_bytes(plan.buffers.total_bytes)} of buffers"
    )
    names = shortlist(f"{safe_text(str(output.path))}{'/' if output.folder else ''}" for output in plan.outputs)
    yield f"writes {names} ({human_bytes(plan.write_bytes)}{_form(plan, plan.outputs[0])})"


def _ranks(plan: Plan) -> Iterator[str]:
    """Yield the ranks of joined LoRA updates."""
    ranks = [t.shape[t.pieces.axis] for t in plan.tensors if t.pieces and t.action is Action.CONCATENATED]
    if ranks:
        low, high = min(ranks), max(ranks)
        rank = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield (
            f"LoRA updates averaged exactly, by factors of rank {rank}; for a smaller rank, approximate the output: "
            'add_weighted_adapter(combination_type="svd") of peft'
        )


def _form(plan: Plan, output: PlannedOutput) -> str:
    """Return what an output is, unless a single safetensors file: how many files, which side files, a copy of what."""
    if output.format == "same":
        averaged = sum(tensor.action is Action.AVERAGED for tensor in plan.tensors)
        copy = "a copy" if len(plan.outputs) == 1 else "each a copy"
        return f": {copy} of {quoted(str(plan.checkpoints[-1].path))} with {plural(averaged, 'averaged tensor')}"
    if output.format == "dcp":
        return f" in {plural(output.weight_files, 'file')}: {words.FORMATS[output.format]}"
    side_files = words.planned_side_files(output) if output.folder else ""
    beside = f" with {side_files}" if side_files else ""
    return f" in {plural(len(output.files), 'shard')}{beside}" if output.folder else ""


def _shortest(folder: str) -> str:
    """Return the absolute or the relative path of a folder, whichever is shorter."""
    if not folder:
        return "several folders"
    if "://" in folder:
        return folder
    try:
        return min(folder, os.path.relpath(folder), key=len)
    except OSError:  # the working directory was deleted
        return folder


def _names_of_weights(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield the keys under which the weights were found, the prefixes that were removed, and what else there is."""
    keys = dict.fromkeys(checkpoint.key for checkpoint in checkpoints if checkpoint.key)
    statements = dict.fromkeys(text for checkpoint in checkpoints for text in checkpoint.choice)
    if keys:
        yield f"weights under {words.weights_keys(keys)}"
    prefixes = dict.fromkeys(prefix for checkpoint in checkpoints for prefix in checkpoint.stripped)
    if prefixes:
        yield f"prefixes removed from the names: {', '.join(prefixes)}"
    yield from statements


def _ignored(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield what else the checkpoints contain, once for all checkpoints with the same content."""
    names_by_content: dict[tuple[str, ...], list[str]] = {}
    for checkpoint in checkpoints:
        if checkpoint.ignored:
            names_by_content.setdefault(checkpoint.ignored, []).append(quoted(checkpoint.path.name))
    for ignored, names in names_by_content.items():
        listed = shortlist(map(quoted, ignored), most=_MOST_IGNORED)
        yield f"ignored in {shortlist(names, most=2)}, not model tensors: {listed}"


def _shares_table(plan: Plan, folder: str, *, all_rows: bool) -> Table:
    """Return the checkpoints with the share of each: with its effect for one average, else beside each other."""
    several = len(plan.outputs) > 1
    unit = plan.series.unit if any(member.step for member in plan.series.members) else "step"
    columns = [Column(title="#", number=True), Column(title="checkpoint", name=True), *numbers(unit)]
    columns += numbers(*(_label(output, "\n") for output in plan.outputs)) if several else _SHARE_COLUMNS
    shares = _shares(plan) if several else _shares_with_effect(plan)
    names = labels([checkpoint.path for checkpoint in plan.checkpoints], folder)
    rows: list[list[Cell]] = [
        [f"{position + 1:,}", whole_name(name), f"{member.step.value:,}" if member.step else "", *cells]
        for position, (name, member, cells) in enumerate(zip(names, plan.series.members, shares, strict=True))
    ]
    if not all_rows:
        blank = [""] * (len(columns) - 2)
        rows = cut_middle(rows, _MOST_ROWS, lambda count: ["…", f"{count:,} more (-v shows them)", *blank])
    return _filled(columns, rows, keys=3 if several else 0)


def _filled(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], keys: int = 0) -> Table:
    """Return a table without the columns that have no value."""
    kept = [at for at in range(len(columns)) if any(str(row[at]) not in ("", _UNDEFINED) for row in rows)]
    return Table(columns=[columns[at] for at in kept], rows=[[row[at] for at in kept] for row in rows], keys=keys)


def _label(output: PlannedOutput, between: str = " ") -> str:
    return output.weighting.method.label.replace(" ", between)


def _shares(plan: Plan) -> Iterator[list[Cell]]:
    """Yield the shares of each checkpoint in all averages."""
    for shares in zip(*(output.weighting.weights for output in plan.outputs), strict=True):
        yield [*map(percent, shares)]


def _shares_with_effect(plan: Plan) -> Iterator[list[Cell]]:
    """Yield the origin of each step unless it is that of all, the share, the LR scale, and a bar."""
    output, continued = plan.outputs[0], plan.series.continuation is not None
    origins = [_origin(plan, member) for member in plan.series.members]
    differ = len(set(origins)) > 1
    largest = max(output.weighting.weights)
    scales = diagnose_output(plan.series, output).implied_lr
    for position, (origin, share) in enumerate(zip(origins, output.weighting.weights, strict=True)):
        scale = "" if continued else number(scales[position])
        bar = Styled(("█" * round(_BAR_WIDTH * share / largest), "cyan"))
        yield [origin if differ else "", percent(share), scale, bar]


def _origin(plan: Plan, member: OrderedCheckpoint) -> str:
    """Return the source of the step; for a previous average its size, for a checkpoint read again its role."""
    if member.role is Role.AVERAGE and plan.series.continuation is not None:
        return plural(len(plan.series.continuation.folded), "checkpoint")
    if member.role is Role.PREVIOUS_LAST:
        return ROLES[member.role]
    return member.step.source if member.step else ""


def _average_lines(plan: Plan, output: PlannedOutput) -> Iterator[str]:
    """Describe an average: its method, its shares, its distance to the true EMA."""
    diagnostics = diagnose_output(plan.series, output)
    method = MethodUsed(**output.weighting.method.plain())
    yield words.definition(method, diagnostics.mean_age_unit)
    yield (
        f"effective checkpoints: {words.effective(diagnostics)}; mean age {words.mean_age(diagnostics)}; "
        f"shares: first {percent(diagnostics.first)}, last {percent(diagnostics.last)}"
    )
    reconstruction = words.reconstruction(method, diagnostics)
    if reconstruction:
        yield reconstruction


def _comparison(plan: Plan) -> Table:
    """Return the averages side by side, to choose one. Columns without a value are omitted."""
    age = f"mean age\n({plan.series.timeline.unit}s)"
    columns = [
        Column(title="average", name=True),
        *numbers("first", "last"),
        Column(title="max", number=True, optional=True),
        *numbers("effective", age, "before\nfirst"),
        Column(title="u", number=True, optional=True),
        *numbers("error"),
    ]
    return _filled(columns, [_comparison_row(plan, output) for output in plan.outputs])


def _comparison_row(plan: Plan, output: PlannedOutput) -> list[str]:
    diagnostics = diagnose_output(plan.series, output)
    method = MethodUsed(**output.weighting.method.plain())
    return [
        _label(output),
        percent(diagnostics.first),
        percent(diagnostics.last),
        percent(diagnostics.largest),
        number(diagnostics.effective_checkpoints),
        number(diagnostics.mean_age),
        _UNDEFINED if diagnostics.unobserved_mass is None else percent(diagnostics.unobserved_mass),
        _UNDEFINED if diagnostics.window_ratio_u is None else number(diagnostics.window_ratio_u),
        words.expected_error(method, diagnostics) or _UNDEFINED,
    ]
