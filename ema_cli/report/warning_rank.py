"""The order in which a reader should see warnings: first what may make the average worthless.

The rule: (1) the inputs may not belong together, or the output may not be what was trained; (2) the order of the
checkpoints, and with it the weights, may be wrong; (3) the average may be another one than was meant; (4) all others:
what was decided, and things to know. Warnings that the user allowed come after all of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ema_cli.errors import RunWarning, UsageError
from ema_cli.options.shell_command import UPDATE_COMMAND, update_command
from ema_cli.report.model import Average, Report
from ema_cli.storage.locations import locate

RANKS = (
    frozenset(
        {
            *("evidence-unrelated", "evidence-outlier", "runs-mixed", "averages-averaged", "nothing-averaged"),
            "output-changed",
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
            *("batchnorm-averaged", "layers-unreached", "master-weights-kept"),
        }
    ),
)


def warnings_of(report: Report) -> list[RunWarning]:
    """Return the warnings of a report as a reader should see them, the most important first."""
    return [after_the_run(warning, report) for warning in ranked(report.warnings)]


def after_the_run(warning: RunWarning, report: Report) -> RunWarning:
    """Return a warning whose hint names the output, where there is only one."""
    average, *others = report.averages
    if others or UPDATE_COMMAND not in warning.hint:
        return warning
    try:
        return replace(warning, hint=warning.hint.replace(UPDATE_COMMAND, update_of(average)))
    except UsageError:  # a report of unknown origin may name anything
        return warning


def update_of(average: Average) -> str:
    """Return the command that recomputes the BatchNorm statistics of an average."""
    return update_command(locate(average.output.path), folder=bool(average.output.files))


def ranked(warnings: Iterable[RunWarning]) -> list[RunWarning]:
    """Return warnings, the most important first; those of equal rank in the order of the report."""
    return sorted(warnings, key=lambda warning: (warning.allowed, _rank(warning.code)))


def _rank(code: str) -> int:
    return next((rank for rank, codes in enumerate(RANKS) if code in codes), len(RANKS))
