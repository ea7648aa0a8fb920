"""Warn that LoRA factors are averaged one by one, if that makes a difference on the files at hand.

An update is ``B A``. The average of B times the average of A is not the average of the updates, and the difference
grows with the distance between the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ema_cli.errors import InputRefused, RunWarning, UsageError
from ema_cli.evidence.factor_products import MeasuredPair, relative_difference
from ema_cli.evidence.pieces import is_remote
from ema_cli.options.average import Options
from ema_cli.planning.lora_exact import ExactUpdates
from ema_cli.planning.lora_pairs import FactorPair
from ema_cli.planning.lora_scales import UpdateScales
from ema_cli.planning.matching import choose_tensors
from ema_cli.records.plan import Action, Plan
from ema_cli.text import percent, plural, quoted, safe_text, shortlist

_MOST_PAIRS = 4
_NEGLIGIBLE = 0.01
"""Of the average update. In ten trainings of a small model with peft: 0.0001 to 0.3 % where the checkpoints are at most
ten steps apart, after the first hundreds of steps; 0.2 to 41 % where they are 50 or 100 steps apart."""
_LONGEST_VALUE = 60


def warn_of_factors(
    plan: Plan, options: Options, pairs: Sequence[FactorPair], *, related: bool = True
) -> Iterator[RunWarning]:
    """Yield warnings about the LoRA factors that a plan averages one by one.

    Args:
        plan: of the average.
        options: that it was made with.
        pairs: the factors.
        related: whether the checkpoints are of one run; the average of several is not made better by exact updates.

    Raises:
        InputChanged: a checkpoint cannot be read.

    """
    averaged = {tensor.name for tensor in plan.tensors if tensor.action is Action.AVERAGED}
    used = [i for i in plan.used if any(output.weighting.weights[i] for output in plan.outputs)]
    if len(used) < 2:  # noqa: PLR2004 - one checkpoint is its own average
        return
    scales = UpdateScales(plan.checkpoints)
    measured = [
        MeasuredPair(
            pair=pair,
            scales=_scales_of(plan, used, scales, pair),
            scale_is_averaged=scales.alpha_name(len(plan.checkpoints) - 1, pair) in averaged,
        )
        for pair in _some(plan, pairs)
    ]
    found = max(relative_difference(plan, measured, output.weighting.weights) for output in plan.outputs)
    if found > _NEGLIGIBLE:
        yield RunWarning(
            code="lora-factors",
            message=f"the factors of {plural(len(pairs), 'LoRA update')} are averaged one by one: the product of the "
            f"averages differs from the average of the updates B A by {percent(found)} "
            f"(measured on {len(measured):,} of them, such as {quoted(pairs[0].stem.removesuffix('.lora'))})",
            hint=_hint(plan, options, f"{len(used) * pairs[0].rank:,} instead of {pairs[0].rank:,}")
            if related
            else "average the checkpoints of one run",
        )
    yield from _warn_of_configs(plan, used, scales)


def _hint(plan: Plan, options: Options, rank: str) -> str:
    """Return what averages the updates: joined factors, if the updates can be joined."""
    if plan.series.continuation is not None:
        return "average all checkpoints at once, with --lora exact"
    layouts = [checkpoint.index.layouts for checkpoint in plan.checkpoints]
    tensors = {id(own): choose_tensors(own, options) for own in layouts}
    chosen = [tensors[id(own)] for own in layouts]
    try:
        exact = ExactUpdates(plan.checkpoints, chosen, [output.weighting for output in plan.outputs])
        exact.refuse_settings()
        if not is_remote(plan, plan.used):  # the scales may be in tensors, each of which would be a request
            _ = exact.updates
    except (InputRefused, UsageError):
        return "merge each checkpoint into the base model and average the models"
    return f"--lora exact averages the updates, by factors of rank {rank}"


def _some(plan: Plan, pairs: Sequence[FactorPair]) -> list[FactorPair]:
    """Return a few pairs, evenly spaced; one for checkpoints in a store, where every read is a request."""
    count = min(len(pairs), 1 if is_remote(plan, plan.used) else _MOST_PAIRS)
    return [pairs[(2 * number + 1) * len(pairs) // (2 * count)] for number in range(count)]


def _scales_of(plan: Plan, used: Sequence[int], scales: UpdateScales, pair: FactorPair) -> list[float]:
    """Return the scale of an update in each checkpoint; 1 in all of them if not all are known."""
    unknown = [1.0] * len(plan.checkpoints)
    found = list(unknown)
    try:
        for i in {*used, len(found) - 1}:
            scale = scales.of(i, pair)
            if scale is None:
                return unknown
            found[i] = scale
    except InputRefused:
        return unknown
    return found


def _warn_of_configs(plan: Plan, used: Sequence[int], scales: UpdateScales) -> Iterator[RunWarning]:
    """Warn of ranks and scales in the configurations of the checkpoints that differ from those in the last."""
    try:
        configs = scales.configs
    except InputRefused:
        return
    last = configs[-1]
    if last is None:
        return
    differences = []
    for key, value in last.settings.items():
        others = [
            f"{_shown(config.settings[key])} in {quoted(plan.checkpoints[i].path.name)}"
            for i in used
            if (config := configs[i]) is not None and config.settings[key] != value
        ]
        if others:
            differences.append(f"{key} is {_shown(value)} in the last, {shortlist(others, most=2)}")
    if differences:
        yield RunWarning(
            code="lora-configs-differ",
            message=f"the adapter_config.json of the checkpoints differ, and only the last is kept: "
            f"{'; '.join(differences)}",
            hint="check rank and scale where you load the output; --lora exact counts those of each checkpoint",
        )


def _shown(value: str) -> str:
    return safe_text(value, limit=_LONGEST_VALUE)
