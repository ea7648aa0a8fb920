"""The order in which a reader should see warnings: first what may make the average worthless.

The rule: (1) the inputs may not belong together, or the output may not be what was trained; (2) the order of the
checkpoints, and with it the weights, may be wrong; (3) the average may be another one than was meant; (4) all others:
what was decided, and things to know. Warnings that the user allowed come after all of these.
"""

from __future__ import annotations

from collections.abc import Iterable

from ema_cli.errors import RunWarning

RANKS = (
    frozenset(
        {
            *("evidence-unrelated", "evidence-outlier", "runs-mixed", "averages-averaged", "nothing-averaged"),
            *("weights-dropped", "integers-differ", "nonfinite-written", "lora-factors"),
        }
    ),
    frozenset(
        {
            *("evidence-order", "order-against-steps", "order-disagrees", "order-doubtful"),
            *("steps-contradict", "steps-incomplete"),
        }
    ),
    frozenset(
        {
            *("first-dominates", "unobserved-mass", "window-not-filled", "window-too-short", "plain-mean"),
            *("one-checkpoint", "same-weights", "evidence-copies", "weights-chosen", "unusable-left-out"),
            *("late-left-out", "again-touched", "input-replaced", "continued-from-rounded"),
            *("batchnorm-averaged", "layers-unreached"),
        }
    ),
)


def ranked(warnings: Iterable[RunWarning]) -> list[RunWarning]:
    """Return warnings, the most important first; those of equal rank in the order of the report."""
    return sorted(warnings, key=lambda warning: (warning.allowed, _rank(warning.code)))


def _rank(code: str) -> int:
    return next((rank for rank, codes in enumerate(RANKS) if code in codes), len(RANKS))
