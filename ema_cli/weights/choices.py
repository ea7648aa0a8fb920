"""What a few choices would do to these checkpoints: the answer to a run without a decay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ema_cli.text import percent, plural
from ema_cli.weights.diagnostics import diagnose
from ema_cli.weights.fitting import decay_for_first_share, half_life_for_first_share
from ema_cli.weights.methods import LONGEST_HALF_LIFE, Decay, Method, MethodName, Per, takes
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline

_USUAL = (0.5, 0.9, 0.99, 0.999)
_USUAL_WARMUP = (0.9, 0.99, 0.999, 0.9999)

Row = tuple[str, Method]
"""Options, and the method that they mean."""


def describe_choices(timeline: Timeline, names: Sequence[MethodName], per: Per | None) -> tuple[str, str]:
    """Return a table of choices as a message, and a hint naming the one that fits most runs.

    Args:
        timeline: where the checkpoints stand.
        names: the methods that were asked for.
        per: what one decay of ``ema`` was said to mean.

    Raises:
        UsageError: a method needs steps, and they are not known.

    """
    name = next(name for name in names if takes([name], "decay"))
    lacking = "neither --decay nor --half-life was given"
    if timeline.count == 1:
        return lacking, "--decay 0.9; with one checkpoint any decay copies it"
    rows = [*_choices(name, timeline, per), ("--method uniform", Method(name="uniform"))]
    width = max(len(option) for option, _ in rows)
    lines = [f"  {option:<{width}}{_shares(method, timeline)}" for option, method in rows]
    title = f"{lacking}. For these {plural(timeline.count, 'checkpoint')}:"
    header = f"  {'':<{width}}{'first':>10}{'last':>10}{'counts as':>12}"
    return "\n".join([title, header, *lines]), _hint(name, timeline, per)


def _choices(name: MethodName, timeline: Timeline, per: Per | None) -> Iterator[Row]:
    if name == "ema-warmup":
        for decay in _USUAL_WARMUP:
            method = Method(name=name, decay=Decay.of(decay), per="checkpoint", warmup="tf")
            yield f"--method {name} --decay {decay}", method
        return
    if name == "ema" and per != "step":
        for decay in sorted({*_USUAL, float(decay_for_first_share(timeline.count - 1))}):
            yield f"--decay {decay}", Method(name=name, decay=Decay.of(decay), per="checkpoint", init="first")
    stepped = timeline.steps is not None and timeline.unit != "epoch"
    if name == "ema-hold" or per == "step" or (stepped and per is None):
        yield from _per_step(name, timeline)


def _per_step(name: MethodName, timeline: Timeline) -> Iterator[Row]:
    option = _step_option(name)
    method = Method(name=name, decay=Decay.of(_USUAL[-1]), per="step", init="first")
    yield f"{option} --decay {_USUAL[-1]}", method
    half_life = half_life_for_first_share(max(timeline.span, 1))
    if float(half_life) <= LONGEST_HALF_LIFE:
        yield f"{option} --half-life {half_life}", replace(method, decay=Decay.of_half_life(float(half_life)))


def _step_option(name: MethodName) -> str:
    return "--per step" if name == "ema" else f"--method {name}"


def _hint(name: MethodName, timeline: Timeline, per: Per | None) -> str:
    """Name the choice that leaves the first checkpoint about a tenth."""
    if name == "ema-warmup":
        return f"--method {name} --decay {_USUAL_WARMUP[0]}"
    fitting = f"--decay {decay_for_first_share(timeline.count - 1)}"
    if name == "ema-hold" or per == "step":
        fitting = f"{_step_option(name)} --half-life {half_life_for_first_share(max(timeline.span, 1))}"
    return f"{fitting}, which leaves a tenth to the first checkpoint"


def _shares(method: Method, timeline: Timeline) -> str:
    found = diagnose(method, solve(method, timeline), timeline)
    return f"{percent(found.first):>10}{percent(found.last):>10}{found.effective_checkpoints:>12.1f}"
