"""Weights from steps against the walk over every single step, in 80 digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ema_cli.errors import UsageError
from ema_cli.weights.methods import WIDEST_SIGMA_REL, Decay, Init, Method, Shape
from ema_cli.weights.reconstruction import ema_hold, ema_linear, gamma_from_sigma_rel, power, uniform_time
from ema_cli.weights.schedules import ema, lr_decay
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline
from tests.helpers.exact import per_step_shares, per_step_shares_closed, power_shares

WORST = 1e-12
"""Relative error of a weight that is allowed."""
LEAST = 1e-290
"""Weights below it are subnormal numbers in some step, and contribute nothing."""

COMPLEMENTS = st.one_of(
    st.floats(-15, math.log10(0.5)).map(lambda exponent: 10.0**exponent),
    st.sampled_from([1e-15, 1e-9, 1e-3, 0.5, 0.1, 2**-52]),
)
"""1 - d, evenly over the orders of magnitude."""
INITS = st.sampled_from(["first", "debias"])


def steps_of(gaps: Sequence[int], start: int = 0) -> tuple[int, ...]:
    """Return the steps that are ``gaps`` apart."""
    return tuple(np.cumsum([start, *gaps]).tolist())


def series(longest: int, most: int = 8) -> st.SearchStrategy[tuple[int, ...]]:
    """Return unevenly spaced steps, gaps of all orders of magnitude, from one checkpoint on."""
    gap = st.floats(0, math.log10(longest)).map(lambda exponent: int(10**exponent))
    return st.tuples(st.lists(gap, max_size=most), st.integers(0, 10**6)).map(lambda made: steps_of(*made))


def assert_exact(weights: Sequence[float], exact: Sequence[Decimal]) -> None:
    """No weight is negative or off by more than the allowed relative error, and they sum to one."""
    for weight, share in zip(weights, exact, strict=True):
        assert weight >= 0
        if share > LEAST:
            assert abs(Decimal(weight) / share - 1) < Decimal(WORST), (weight, share)
        else:
            assert weight <= 2 * LEAST
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


@given(steps=series(300), complement=COMPLEMENTS, init=INITS)
@settings(deadline=None, max_examples=60)
@example(steps=steps_of([1] * 12), complement=1e-15, init="debias")
@example(steps=steps_of([300, 1, 300]), complement=0.5, init="first")
@example(steps=(7,), complement=1e-3, init="debias")
def test_linear_weights_are_those_of_every_step_taken(steps: tuple[int, ...], complement: float, init: Init) -> None:
    """The closed form is the per-step EMA of the path on straight lines, step by step."""
    exact = per_step_shares(steps, Fraction(complement), debias=init == "debias")
    assert_exact(ema_linear(steps, Decay.of_complement(complement), init), exact)


@given(steps=series(300), complement=COMPLEMENTS, init=INITS)
@settings(deadline=None, max_examples=60)
@example(steps=steps_of([1] * 12), complement=1e-15, init="debias")
def test_held_weights_are_those_of_every_step_taken(steps: tuple[int, ...], complement: float, init: Init) -> None:
    """The closed form is the per-step EMA of a path that waits at the next checkpoint, step by step."""
    exact = per_step_shares(steps, Fraction(complement), debias=init == "debias", hold=True)
    assert_exact(ema_hold(steps, Decay.of_complement(complement), init), exact)


@given(steps=series(10_000_000, most=12), complement=COMPLEMENTS, init=INITS)
@settings(deadline=None, max_examples=150)
@example(steps=steps_of([10_000_000] * 3), complement=1e-15, init="first")
@example(steps=steps_of([10_000_000] * 3), complement=0.5, init="first")
def test_linear_weights_hold_for_long_gaps(steps: tuple[int, ...], complement: float, init: Init) -> None:
    """Gaps up to ten million steps, against the textbook formula at 400 digits."""
    exact = per_step_shares_closed(steps, Fraction(complement), debias=init == "debias")
    assert_exact(ema_linear(steps, Decay.of_complement(complement), init), exact)


@given(steps=series(40, most=5), decay=st.floats(1e-9, 0.5), init=INITS)
@settings(deadline=None, max_examples=40)
@example(steps=steps_of([2, 1, 40]), decay=1e-9, init="first")
def test_small_decays_hold_too(steps: tuple[int, ...], decay: float, init: Init) -> None:
    """Below one half d itself has the digits."""
    exact = per_step_shares(steps, 1 - Fraction(decay), debias=init == "debias")
    found = ema_linear(steps, Decay.of(decay), init)
    for weight, share in zip(found, exact, strict=True):
        assert weight == pytest.approx(float(share), rel=1e-11, abs=1e-300)


def test_the_oracles_agree() -> None:
    """The walk and the textbook formula agree where both can be computed."""
    steps, complement = steps_of([3, 50, 1, 17]), Fraction(1, 1000)
    for debias in (False, True):
        walked = per_step_shares(steps, complement, debias=debias)
        assert [float(share) for share in walked] == pytest.approx(
            [float(share) for share in per_step_shares_closed(steps, complement, debias=debias)], rel=1e-15
        )


@pytest.mark.parametrize("solver", [ema_linear, ema_hold])
def test_decay_zero_takes_the_last_checkpoint_alone(solver: type) -> None:
    """With d = 0 nothing but the last step counts."""
    assert solver((1, 5, 7), Decay.of(0.0)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, math.nextafter(1, 0)])
@pytest.mark.parametrize("init", ["first", "debias"])
def test_one_checkpoint_has_it_all(decay: float, init: Init) -> None:
    """N = 1: the average is that checkpoint, whatever the method."""
    timeline = Timeline.of([123], "step")
    for name in ("ema", "ema-hold"):
        method = Method(name=name, decay=Decay.of(decay), per="step", init=init)
        assert solve(method, timeline) == (1.0,)
    assert uniform_time((5,)) == power((0,), 0.1) == power((9,), 0.1) == lr_decay((5,), "cosine") == (1.0,)


def test_two_checkpoints_have_known_weights() -> None:
    """N = 2, one step apart: theta_2 is one step of the EMA; two apart, the middle is half of each."""
    assert ema_linear((10, 11), Decay.of(0.75)) == (0.75, 0.25)
    assert ema_linear((10, 12), Decay.of(0.5)) == pytest.approx((0.25 + 0.125, 0.5 + 0.125), rel=1e-15)


@pytest.mark.parametrize("init", ["first", "debias"])
def test_every_step_saved_is_the_ema_itself(init: Init) -> None:
    """At gaps of one there is nothing to interpolate: all forms are the literal fold."""
    decay, steps = Decay.of(0.97), tuple(range(50, 90))
    for solver in (ema_linear, ema_hold):
        assert solver(steps, decay, init) == pytest.approx(ema(len(steps), decay, init), rel=1e-13)


@given(gap=st.integers(1, 1000), count=st.integers(1, 20), complement=COMPLEMENTS)
@settings(deadline=None)
def test_hold_at_equal_spacing_is_the_fold_with_the_power_of_the_gap(gap: int, count: int, complement: float) -> None:
    """``ema-hold`` = ``ema`` with d^gap, an exact identity."""
    decay = Decay.of_complement(complement)
    power_of_gap = Decay(value=math.exp(-decay.rate * gap), complement=-math.expm1(-decay.rate * gap))
    steps = steps_of([gap] * (count - 1))
    assert ema_hold(steps, decay) == pytest.approx(ema(count, power_of_gap), rel=1e-11, abs=1e-290)


def test_debiased_tends_to_the_mean_over_steps() -> None:
    """As d -> 1, with ``debias`` every step has the same weight, so the checkpoints have the trapezoid's weights."""
    steps = steps_of([100, 300, 50], 1000)
    found = ema_linear(steps, Decay.of_complement(1e-14), "debias")
    per_step = np.array([np.interp(np.arange(1000, 1451), steps, unit) for unit in np.eye(4)]).mean(axis=1)
    assert found == pytest.approx(per_step.tolist(), rel=1e-10)
    assert found == pytest.approx(uniform_time(steps), abs=2e-3)


def test_first_tends_to_the_first_checkpoint() -> None:
    """As d -> 1, with ``first`` all of the average is the first checkpoint."""
    assert ema_linear((0, 10, 20), Decay.of_complement(1e-15))[0] == pytest.approx(1, abs=1e-13)


@given(steps=series(10**6).filter(lambda steps: len(steps) > 1))
@settings(deadline=None)
def test_uniform_time_is_the_trapezoid_rule(steps: tuple[int, ...]) -> None:
    """The weights integrate any values over the steps as numpy does."""
    values = np.random.default_rng(0).normal(size=len(steps))
    mean = np.trapezoid(values, steps) / (steps[-1] - steps[0])
    assert float(np.dot(uniform_time(steps), values)) == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert math.fsum(uniform_time(steps)) == pytest.approx(1, abs=1e-15)


@pytest.mark.slow
@given(steps=series(10**6), sigma_rel=st.floats(0.002, WIDEST_SIGMA_REL))
@settings(deadline=None, max_examples=60)
@example(steps=(0, 1, 10**9), sigma_rel=0.25)
@example(steps=(0, 5), sigma_rel=WIDEST_SIGMA_REL)
@example(steps=(10**6, 10**6 + 1, 10**6 + 2), sigma_rel=0.002)
def test_power_weights_are_the_integrals_of_the_profile(steps: tuple[int, ...], sigma_rel: float) -> None:
    """The closed form is the profile integrated against the hats of the checkpoints."""
    if steps[-1] == 0:
        return
    assert_exact(power(steps, sigma_rel), power_shares(steps, gamma_from_sigma_rel(sigma_rel) + 1))


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558), (0.20, 1.826), (0.25, 0.720)]
)
def test_gamma_is_that_of_the_literature(sigma_rel: float, gamma: float) -> None:
    """The usual widths have the exponents that Karras et al. print."""
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, abs=5e-4)


@given(st.floats(1e-4, WIDEST_SIGMA_REL))
@settings(deadline=None)
@example(WIDEST_SIGMA_REL)
def test_gamma_gives_back_the_width(sigma_rel: float) -> None:
    """The standard deviation of the profile with that exponent is the requested width."""
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-12)


def test_power_at_every_step_has_the_width_asked_for() -> None:
    """Measured on the weights: mean and standard deviation of their time."""
    steps = tuple(range(2001))
    weights = np.array(power(steps, 0.1))
    times = np.array(steps) / steps[-1]
    mean = float(weights @ times)
    gamma = gamma_from_sigma_rel(0.1)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-3)
    assert math.sqrt(float(weights @ (times - mean) ** 2)) == pytest.approx(0.1, abs=1e-3)


CURVES: dict[Shape, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


@given(steps=series(10**6).filter(lambda steps: len(steps) > 1), shape=st.sampled_from(sorted(CURVES)))
@settings(deadline=None)
def test_lr_decay_gives_the_updates_the_rate_of_the_curve(steps: tuple[int, ...], shape: Shape) -> None:
    """The tail sums of the weights are the learning rate at each checkpoint."""
    weights = lr_decay(steps, shape)
    length = (steps[-1] - steps[0]) * len(steps) / (len(steps) - 1)
    for i, step in enumerate(steps):
        expected = CURVES[shape]((step - steps[0]) / length)
        assert math.fsum(weights[i:]) == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


def test_lr_decay_at_equal_spacing_is_minus_sqrt() -> None:
    """``1-sqrt`` gives f(i/N) - f((i+1)/N), most on the oldest: the weights that Megatron calls minus-sqrt."""
    found = lr_decay(steps_of([25] * 9), "1-sqrt")
    assert found == pytest.approx([math.sqrt((i + 1) / 10) - math.sqrt(i / 10) for i in range(10)], rel=1e-14)
    assert [round(weight, 3) for weight in found[:4]] == [0.316, 0.131, 0.101, 0.085]
    assert lr_decay(steps_of([25] * 9), "linear") == pytest.approx([0.1] * 10, rel=1e-15)


@given(steps=series(10**12, most=30), scale=st.integers(1, 1000))
@settings(deadline=None)
def test_scale_free_methods_do_not_care_for_the_clock(steps: tuple[int, ...], scale: int) -> None:
    """Counting tokens instead of steps changes nothing if no decay is involved."""
    tokens = tuple(step * scale for step in steps)
    assert lr_decay(tokens, "cosine") == pytest.approx(lr_decay(steps, "cosine"), rel=1e-9, abs=1e-15)
    assert uniform_time(tokens) == pytest.approx(uniform_time(steps), rel=1e-14)
    assert power(tokens, 0.1) == pytest.approx(power(steps, 0.1), rel=1e-11, abs=1e-290)


def test_a_decay_belongs_to_the_clock() -> None:
    """A half-life of 1000 steps is one of 4,000,000 tokens at 4,000 tokens a step; holding is exactly the same."""
    steps = steps_of([100, 250, 30])
    tokens = tuple(step * 4000 for step in steps)
    by_step, by_token = Decay.of_half_life(1000), Decay.of_half_life(4_000_000)
    assert ema_hold(tokens, by_token) == pytest.approx(ema_hold(steps, by_step), rel=1e-12)
    assert ema_linear(tokens, by_token) == pytest.approx(ema_linear(steps, by_step), abs=1e-3)


@pytest.mark.parametrize("steps", [None, (3, 3, 4), (5, 4, 6)])
def test_steps_must_be_known_and_grow(steps: tuple[int, ...] | None) -> None:
    """Steps that cannot be used are refused, with a hint; no other weights are used in their place."""
    timeline = Timeline.of(steps or [None, None, None], "step")
    for method in (
        Method(name="ema", decay=Decay.of(0.9), per="step", init="first"),
        Method(name="ema-hold", decay=Decay.of(0.9), per="step", init="first"),
        Method(name="uniform-time"),
        Method(name="power", sigma_rel=0.1),
        Method(name="lr-decay", shape="linear"),
    ):
        with pytest.raises(UsageError, match="steps-unknown") as refused:
            solve(method, timeline)
        assert "--steps" in refused.value.hint
