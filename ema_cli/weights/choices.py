"""Decays that fit a series, and a table of the shares that some choices give: the answer to a run without a decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ema_cli.text import number, percent, plural
from ema_cli.weights.diagnostics import diagnose
from ema_cli.weights.methods import LONGEST_HALF_LIFE, Decay, Method, MethodName, Per, takes
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline

_USUAL = (0.5, 0.9, 0.99, 0.999)
_USUAL_WARMUP = (0.9, 0.99, 0.999, 0.9999)

SMALL_SHARE = 0.1
"""Of the first checkpoint: small enough that the average hardly depends on where the series begins."""

Row = tuple[str, Method]
"""Flags, and the method that they select."""


def describe_choices(timeline: Timeline, names: Sequence[MethodName], per: Per | None) -> tuple[str, str]:
    """Return a table of choices as a message, and a hint with the choice that fits most runs.

    The table is for the first of the requested methods that takes a decay, and for ``uniform``.

    Raises:
        UsageError: a method needs steps, and they are unknown.

    """
    name = next(name for name in names if takes([name], "decay"))
    lacking = "neither --decay nor --half-life was given"
    if timeline.count == 1:
        return lacking, "--decay 0.9; a single checkpoint is copied, whatever the decay"
    rows = [*_choices(name, timeline, per), ("--method uniform", Method(name="uniform"))]
    width = max(len(option) for option, _ in rows)
    lines = [f"  {option:<{width}}{_shares(method, timeline)}" for option, method in rows]
    title = f"{lacking}. For these {plural(timeline.count, 'checkpoint')}:"
    header = f"  {'':<{width}}{'first':>10}{'last':>10}{'effective':>12}"
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
    """Return the flags that leave the first checkpoint about a tenth."""
    if name == "ema-warmup":
        return f"--method {name} --decay {_USUAL_WARMUP[0]}"
    fitting = f"--decay {decay_for_first_share(timeline.count - 1)}"
    if name == "ema-hold" or per == "step":
        fitting = f"{_step_option(name)} --half-life {half_life_for_first_share(max(timeline.span, 1))}"
    return f"{fitting} (leaves the first checkpoint a tenth of the average)"


def _shares(method: Method, timeline: Timeline) -> str:
    found = diagnose(method, solve(method, timeline), timeline)
    return f"{percent(found.first):>10}{percent(found.last):>10}{number(found.effective_checkpoints):>12}"


def decay_for_first_share(gaps: int) -> str:
    """Return the decay per checkpoint that leaves a tenth after ``gaps`` gaps: d^(N-1) = 1/10."""
    return short_decay(math.pow(SMALL_SHARE, 1 / gaps))


def half_life_for_first_share(span_steps: int) -> str:
    """Return the half-life that leaves at most a tenth after ``span_steps`` steps: 2^(-(T-t_1)/H) <= 1/10."""
    exact = span_steps * math.log(2) / -math.log(SMALL_SHARE)
    return two_digits(exact, down=True)


def short_decay(decay: float) -> str:
    """Return a decay as text that keeps two digits of 1 - d, so that it never reads as 1."""
    digits = 1 - math.floor(math.log10(1 - decay))
    return f"{decay:.{digits}f}".rstrip("0")


def two_digits(value: float, *, down: bool = False) -> str:
    """Return a positive number rounded to two digits, without an exponent; with ``down`` never to a larger number."""
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    if down and rounded > value:
        rounded = round(rounded - 10.0**-digits, digits)
    return f"{rounded:.{max(digits, 0)}f}"
