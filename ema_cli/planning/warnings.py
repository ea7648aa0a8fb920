"""Warnings about a plan, to read before trusting the average; each with a hint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ema_cli.dtypes import DType
from ema_cli.errors import RunWarning
from ema_cli.naming import is_batch_norm_statistic
from ema_cli.options.average import Options
from ema_cli.options.shell_command import UPDATE_COMMAND
from ema_cli.planning.matching import Chosen, Matched
from ema_cli.planning.ties import DroppedTies
from ema_cli.records.plan import Plan, PlannedTensor
from ema_cli.records.series import Checkpoint
from ema_cli.text import plural, quoted, shortlist
from ema_cli.weights.methods import Weighting
from ema_cli.weights.share_warnings import warn_of_shares
from ema_cli.weights.timeline import Timeline

COPIES_HINT = "name only one of them, unless the weights really did not change between the steps"
BATCHNORM_AVERAGED = "batchnorm-averaged"
_ABOUT_DEFAULTS = {BATCHNORM_AVERAGED: "buffers", "dtypes-differ": "dtype", "float8-averaged": "dtype"}
"""Warnings about the default of an option, which are silent if the option was given by hand."""


def warn_of_plan(
    weightings: Sequence[Weighting],
    timeline: Timeline,
    tensors: Sequence[PlannedTensor],
    chosen: Sequence[Chosen],
    options: Options,
) -> Iterator[RunWarning]:
    """Yield the warnings about the shares and the tensors of a plan; ``chosen`` has those of each distinct layout."""
    for warning in _warnings_about_plan(weightings, timeline, tensors, chosen, options):
        about = _ABOUT_DEFAULTS.get(warning.code)
        if about is None or not options.is_given(about):
            yield warning


def _warnings_about_plan(
    weightings: Sequence[Weighting],
    timeline: Timeline,
    tensors: Sequence[PlannedTensor],
    chosen: Sequence[Chosen],
    options: Options,
) -> Iterator[RunWarning]:
    averaged = [tensor for tensor in tensors if tensor.action.combines]
    several = timeline.count > 1
    yield from _warnings_about_shares(weightings if several else weightings[:1], timeline, options)
    if several:
        yield from _warnings_about_averaged(averaged)
    yield from _warnings_about_dtypes(chosen, {tensor.name for tensor in averaged})
    if not averaged:
        yield RunWarning(code="nothing-averaged", message="no tensor has floating-point numbers: all are copied")


def warn_of_chosen_weights(checkpoints: Sequence[Checkpoint]) -> Iterator[RunWarning]:
    """Yield the warnings of the readers about the choice of weights, each once for all checkpoints."""
    found: dict[RunWarning, list[str]] = {}
    for checkpoint in checkpoints:
        chosen = [RunWarning(code="weights-chosen", message=text) for text in checkpoint.warnings]
        for warning in (*checkpoint.dropped, *chosen):
            found.setdefault(warning, []).append(quoted(checkpoint.path.name))
    for warning, names in found.items():
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        yield replace(warning, message=f"{names[-1]}{others}: {warning.message}")


def warn_of_unmatched(matched: Matched, dropped: DroppedTies) -> Iterator[RunWarning]:
    """Yield warnings about tensors, or ties, that not every checkpoint has."""
    found = (
        ("missing-copied", matched.lacking, "copied from the last checkpoint, because other checkpoints lack {them}"),
        ("missing-left-out", matched.dropped, "dropped, because the last checkpoint lacks {them}"),
        ("tied-kept", dropped.apart, "written in spite of --tied drop, because not all checkpoints have the tie"),
    )
    for code, tensors, reason in found:
        names = sorted(map(quoted, tensors))
        if names:
            them = "it" if len(names) == 1 else "them"
            message = f"{plural(len(names), 'tensor')} {reason.format(them=them)}: {shortlist(names)}"
            hint = "use --from to begin with the checkpoint where the tie begins" if code == "tied-kept" else ""
            yield RunWarning(code=code, message=message, hint=hint)


def _warnings_about_shares(
    weightings: Sequence[Weighting], timeline: Timeline, options: Options
) -> Iterator[RunWarning]:
    """Yield each kind of warning once: in full for the first average concerned, the others by name.

    ``--init first`` by hand says what shall be used for the steps before the first checkpoint.
    """
    by_code: dict[str, list[tuple[str, RunWarning]]] = {}
    for weighting in weightings:
        starts_by_hand = options.init is not None and weighting.method.init is not None
        for warning in warn_of_shares(weighting, timeline):
            if starts_by_hand and warning.code == "unobserved-mass":
                continue
            by_code.setdefault(warning.code, []).append((weighting.method.label, warning))
    for found in by_code.values():
        label, warning = found[0]
        average = f"{label}: " if len(weightings) > 1 else ""
        others = f"; also {shortlist(other for other, _ in found[1:])}" if len(found) > 1 else ""
        yield replace(warning, message=f"{average}{warning.message}{others}")


def _warnings_about_averaged(tensors: Sequence[PlannedTensor]) -> Iterator[RunWarning]:
    statistics = [quoted(tensor.name) for tensor in tensors if is_batch_norm_statistic(tensor.name)]
    if statistics:
        yield RunWarning(
            code=BATCHNORM_AVERAGED,
            message=(
                f"{plural(len(statistics), 'BatchNorm statistic')} averaged with the weights "
                f"({shortlist(statistics, most=2)}): they fit the activations of the checkpoints, not of the average"
            ),
            hint=f"recompute them: {UPDATE_COMMAND}; or accept them: --buffers average",
        )
    small = [quoted(tensor.name) for tensor in tensors if tensor.dtype.itemsize == 1]
    if small:
        yield RunWarning(
            code="float8-averaged",
            message=f"float8 tensors are averaged and rounded to float8 again ({shortlist(small, most=2)})",
            hint="--dtype bfloat16 is more precise; codes of a quantized model must not be averaged",
        )


def _warnings_about_dtypes(chosen: Sequence[Chosen], planned: Collection[str]) -> Iterator[RunWarning]:
    first: dict[str, DType] = {}
    differ = {
        name
        for tensors in chosen
        for name, (_, layout) in tensors.items()
        if first.setdefault(name, layout.dtype) is not layout.dtype
    }
    names = [quoted(name) for name in first if name in differ and name in planned]
    if names:
        yield RunWarning(
            code="dtypes-differ",
            message=f"the checkpoints have different types of {plural(len(names), 'tensor')} "
            f"({shortlist(names, most=2)})",
            hint="the values are averaged exactly; the output has the type of the last checkpoint, or --dtype",
        )


def warn_of_same_weights(plan: Plan, contents: Mapping[int, str]) -> list[RunWarning]:
    """Return a warning if checkpoints have the same ``contents``: the digest of their averaged tensors, by position.

    Copies that the evidence shows have been reported. Where nothing is averaged, the digests say nothing.
    """
    if not any(tensor.action.combines for tensor in plan.tensors):
        return []
    same: dict[str, list[int]] = defaultdict(list)
    for i, digest in contents.items():
        same[digest].append(i)
    reported = [set(group) for group in plan.evidence.copies] if plan.evidence else []
    groups = [
        [quoted(plan.checkpoints[i].path.name) for i in positions]
        for positions in same.values()
        if len(positions) > 1 and not any(group.issuperset(positions) for group in reported)
    ]
    if not groups:
        return []
    copies = sum(len(names) - 1 for names in groups)
    message = f"{shortlist(' = '.join(names) for names in groups)} have the same weights, "
    message += f"so the average counts {plural(copies, 'checkpoint')} twice"
    return [RunWarning(code="same-weights", message=message, hint=COPIES_HINT)]
