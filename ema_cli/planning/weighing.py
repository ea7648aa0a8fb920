"""From the options and an ordered series to the weights of each average."""

from __future__ import annotations

from ema_cli.errors import UsageError
from ema_cli.options.average import Options
from ema_cli.records.series import Series
from ema_cli.weights.choices import describe_choices
from ema_cli.weights.methods import Method, Weighting
from ema_cli.weights.solve import solve


def weigh(series: Series, options: Options) -> list[Weighting]:
    """Return the weights of every average that ``options`` ask for, in their order.

    Raises:
        UsageError: no decay was given, or a method does not fit the checkpoints.

    """
    timeline = series.timeline
    if series.continuation is not None:
        return [_go_on(series)]
    if options.lacks_decay:
        message, hint = describe_choices(timeline, options.method_names, options.per)
        raise UsageError(message, hint=hint)
    weightings = []
    for method in options.expand():
        _refuse_epochs(method, series, options)
        shares = solve(method, timeline)
        weightings.append(Weighting(method=method, weights=shares, shares=shares))
    return weightings


def _go_on(series: Series) -> Weighting:
    """The earlier average and its last checkpoint have factors of their own; the new ones have their shares."""
    continuation = series.continuation
    assert continuation is not None  # noqa: S101 - asked by the caller
    shares = solve(continuation.method, series.timeline)
    inside = (continuation.scale, continuation.again) if continuation.again else (continuation.scale,)
    return Weighting(method=continuation.method, weights=(*inside, *shares[len(continuation.folded) :]), shares=shares)


def _refuse_epochs(method: Method, series: Series, options: Options) -> None:
    """A decay per step says nothing to checkpoints that are numbered in epochs, unless the user says that it does."""
    units = {member.step.unit for member in series.members if member.step}
    if method.uses_steps and method.decay is not None and units == {"epoch"} and options.clock is None:
        raise UsageError(
            f"{method.label} is meant per step, but the checkpoints are numbered in epochs",
            hint="--clock epochs, if it is meant per epoch; else give the steps with --steps",
        )
