"""Everything that the weights say about a plan, asked once, after planning and before the fold.

Input -> output: a plan -> the evidence that it averages one series, and all warnings that rest on the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ema_cli.errors import RunWarning
from ema_cli.evidence.integers import warn_of_integers
from ema_cli.evidence.probe import Examined, examine_series
from ema_cli.options.average import Options
from ema_cli.planning.lora_pairs import find_pairs
from ema_cli.records.plan import Action, Plan


def examine_weights(plan: Plan, options: Options) -> Examined:
    """Return what a bounded number of reads finds out.

    Raises:
        InputChanged: a checkpoint ends early, or cannot be read.

    """
    found = examine_series(plan, options)
    factors = _warn_of_factors(plan, options, related=found.are_related)
    return replace(found, warnings=(*found.warnings, *warn_of_integers(plan), *factors))


def _warn_of_factors(plan: Plan, options: Options, *, related: bool) -> Iterable[RunWarning]:
    pairs = list(find_pairs({t.name: (t.dtype, t.shape) for t in plan.tensors if t.action is Action.AVERAGED}))
    if not pairs:
        return ()
    from ema_cli.evidence.lora_difference import warn_of_factors  # noqa: PLC0415 - few checkpoints have such factors

    return warn_of_factors(plan, options, pairs, related=related)
