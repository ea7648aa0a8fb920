"""Weights that depend on the number of checkpoints alone, compared with the recurrence in exact arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ema_cli.errors import UsageError
from ema_cli.weights.methods import Decay, Method, Shape
from ema_cli.weights.schedules import ema, ema_warmup, manual, ramp, uniform
from ema_cli.weights.solve import continuation_factors, solve
from ema_cli.weights.timeline import Timeline
from tests.helpers.exact import debiased_shares, ema_shares, warmup_shares

DECAYS = st.one_of(
    st.floats(1e-9, 1, exclude_max=True),
    st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999, math.nextafter(1, 0)]),
)
COUNTS = st.integers(1, 40)


def assert_close(weights: tuple[float, ...], exact: list[Fraction]) -> None:
    """Each weight is within a few roundings of the exact one, and they sum to one."""
    for weight, share in zip(weights, exact, strict=True):
        assert weight >= 0
        assert abs(Fraction(weight) - share) <= share * Fraction(2) ** -48 + Fraction(2) ** -1070
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


@given(decay=DECAYS, count=COUNTS)
@settings(deadline=None)
@example(decay=math.nextafter(1, 0), count=40)
@example(decay=5e-324, count=4)
def test_ema_weights_are_those_of_the_recurrence(decay: float, count: int) -> None:
    """The closed form is the literal fold that starts at the first checkpoint."""
    assert_close(ema(count, Decay.of(decay)), ema_shares(count, decay))


@given(decay=DECAYS, count=COUNTS)
@settings(deadline=None)
@example(decay=math.nextafter(1, 0), count=40)
@example(decay=5e-324, count=4)
def test_debiased_weights_are_those_of_the_recurrence_from_zero(decay: float, count: int) -> None:
    """``debias`` is the fold that starts at zero, divided by the sum of its weights."""
    assert_close(ema(count, Decay.of(decay), "debias"), debiased_shares(count, decay))


@pytest.mark.parametrize("init", ["first", "debias"])
def test_decay_zero_takes_the_last_checkpoint_alone(init: str) -> None:
    """With d = 0 nothing but the last checkpoint has a share, exactly."""
    assert ema(4, Decay.of(0.0), init) == (0.0, 0.0, 0.0, 1.0)  # type: ignore[arg-type]


@given(count=COUNTS, cap=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_tf_warmup_is_the_fold_with_its_decays(count: int, cap: float) -> None:
    """Update n uses min(d, (1 + n) / (10 + n)), the first one n = 1."""
    method = Method(name="ema-warmup", decay=Decay.of(cap), per="checkpoint", warmup="tf")
    exact = warmup_shares([min(Decimal(cap), Decimal(1 + n) / Decimal(10 + n)) for n in range(1, count)])
    weights = ema_warmup(count, method)
    assert weights == pytest.approx([float(share) for share in exact], rel=1e-12, abs=1e-300)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


@given(
    count=COUNTS,
    inv_gamma=st.floats(1e-3, 1e3),
    power=st.floats(1e-3, 3),
    cap=st.floats(0.5, 1, exclude_max=True),
)
@settings(deadline=None)
@example(count=10, inv_gamma=1.0, power=2 / 3, cap=0.9999)
def test_inv_gamma_warmup_is_the_fold_with_its_decays(count: int, inv_gamma: float, power: float, cap: float) -> None:
    """Update n uses min(d, 1 - (1 + n/gamma)^-p)."""
    method = Method(name="ema-warmup", decay=Decay.of(cap), warmup="inv-gamma", inv_gamma=inv_gamma, power=power)
    growing = [1 - (1 + Decimal(n) / Decimal(inv_gamma)) ** -Decimal(power) for n in range(1, count)]
    exact = warmup_shares([min(Decimal(cap), decay) for decay in growing])
    assert ema_warmup(count, method) == pytest.approx([float(share) for share in exact], rel=1e-12, abs=1e-300)


def test_warmup_shares_of_the_literature() -> None:
    """Ten checkpoints: .0001 ... .263 .474 for TF's rule, .018 ... .181 .215 for power 2/3."""
    tf = Method(name="ema-warmup", decay=Decay.of(0.9999), warmup="tf")
    assert [round(weight, 4) for weight in ema_warmup(10, tf)[::9]] == [0.0001, 0.4737]
    inverse = Method(name="ema-warmup", decay=Decay.of(0.9999), warmup="inv-gamma", inv_gamma=1, power=2 / 3)
    assert ema_warmup(10, inverse)[::9] == pytest.approx([0.018, 0.215], abs=6e-4)


def test_warmup_that_never_ends_is_the_fold() -> None:
    """Once the decay has reached its cap it is the literal fold."""
    low = Method(name="ema-warmup", decay=Decay.of(0.1), warmup="tf")
    assert ema_warmup(6, low) == pytest.approx(ema(6, Decay.of(0.1)), rel=1e-14)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_ramp_grows_by_equal_steps(count: int) -> None:
    """``ramp`` is proportional to 1, 2, ..., N."""
    weights = ramp(count)
    assert weights == pytest.approx([i * weights[0] for i in range(1, count + 1)], rel=1e-14)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


def test_manual_weights_are_divided_by_their_sum_by_default() -> None:
    """``--no-normalize`` keeps the given weights."""
    assert manual((1, 3), normalize=True) == (0.25, 0.75)
    assert manual((1, 3), normalize=False) == (1, 3)
    with pytest.raises(UsageError, match="sum to zero"):
        manual((0, 0), normalize=True)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Method(name="uniform"), (0.25,) * 4),
        (Method(name="ema", decay=Decay.of(0.5), init="first"), (0.125, 0.125, 0.25, 0.5)),
        (Method(name="ema", decay=Decay.of(0.5), init="debias"), (1 / 15, 2 / 15, 4 / 15, 8 / 15)),
        (Method(name="ema", decay=Decay.of(0.5), per="step", init="first"), (0.125, 0.125, 0.25, 0.5)),
        (Method(name="ema-hold", decay=Decay.of(0.5), per="step", init="debias"), (1 / 15, 2 / 15, 4 / 15, 8 / 15)),
        (Method(name="ema-warmup", decay=Decay.of(0.0), warmup="tf"), (0, 0, 0, 1)),
        (Method(name="ramp"), (0.1, 0.2, 0.3, 0.4)),
        (Method(name="uniform-time"), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        (Method(name="lr-decay", shape="linear"), (0.25,) * 4),
        (
            Method(name="lr-decay", shape="1-sqrt"),
            (0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.75) - math.sqrt(0.5), 1 - math.sqrt(0.75)),
        ),
        (Method(name="manual", normalize=True), (0.1, 0.2, 0.3, 0.4)),
        (Method(name="manual", normalize=False), (1, 2, 3, 4)),
    ],
    ids=lambda value: value.label if isinstance(value, Method) else "",
)
def test_solve_dispatches_on_the_method(method: Method, expected: tuple[float, ...]) -> None:
    """``solve`` gives each method its own weights, at steps 1 to 4."""
    timeline = Timeline(count=4, steps=(1, 2, 3, 4), unit="step", given_weights=(1, 2, 3, 4))
    assert solve(method, timeline) == pytest.approx(expected, rel=1e-14)


def test_manual_weights_must_be_given() -> None:
    """``manual`` without weights says how to give them."""
    with pytest.raises(UsageError, match="needs weights"):
        solve(Method(name="manual", normalize=True), Timeline(count=2))


METHODS = [
    Method(name="uniform"),
    Method(name="ramp"),
    Method(name="ema-warmup", decay=Decay.of(0.99), warmup="tf"),
    Method(name="uniform-time"),
    Method(name="power", sigma_rel=0.1),
    *(
        Method(name=name, decay=Decay.of(decay), per=per, init=init)  # type: ignore[arg-type]
        for name, per in (("ema", "checkpoint"), ("ema", "step"), ("ema-hold", "step"))
        for decay in (0.0, 0.3, 0.99, 1 - 1e-9)
        for init in ("first", "debias")
    ),
]


def test_a_share_halves_after_the_half_life() -> None:
    """With a half-life of 3 the weight three checkpoints earlier is half as large."""
    weights = ema(12, Decay.of_half_life(3))
    for earlier, later in zip(weights[1:], weights[4:], strict=False):
        assert earlier / later == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_one_checkpoint_has_the_whole_share(method: Method) -> None:
    """The average of one checkpoint is that checkpoint."""
    assert solve(method, Timeline.of([7], "step")) == (1.0,)


@given(
    method=st.sampled_from(METHODS),
    gaps=st.lists(st.integers(1, 10**5), min_size=1, max_size=12),
    inside=st.integers(1, 12),
)
@settings(deadline=None, max_examples=300)
@example(
    method=next(m for m in METHODS if m.name == "ema-hold" and m.decay == Decay.of(0.99)), gaps=[71411, 3], inside=2
)
def test_an_average_can_be_continued(method: Method, gaps: list[int], inside: int) -> None:
    """C A + e theta_M + the rest has the shares of all at once, and c and e are never negative."""
    steps = [7 + sum(gaps[:i]) for i in range(len(gaps) + 1)]
    inside = min(inside, len(steps) - 1)
    timeline = Timeline.of(steps, "step")
    before, full = solve(method, timeline.until(inside)), solve(method, timeline)
    factors = continuation_factors(before, full)
    assert factors is not None
    scale, again = factors
    shares = [scale * share for share in before]
    shares[-1] += again
    assert [*shares, *full[inside:]] == pytest.approx(full, rel=1e-12, abs=1e-15)
    assert min(factors) >= 0
    looks_back = method.name in ("uniform-time", "power") or (method.name == "ema" and method.per == "step")
    if not looks_back:
        assert again == 0


@pytest.mark.parametrize("inside", [3, 10, 500])
def test_an_average_with_shifting_shares_cannot_be_continued(inside: int) -> None:
    """The cosine changes the ratios of earlier shares, so an average of them cannot be used."""
    method = Method(name="lr-decay", shape="cosine")
    timeline = Timeline.of(range(inside + 1), "step")
    assert continuation_factors(solve(method, timeline.until(inside)), solve(method, timeline)) is None


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_a_checkpoint_is_never_taken_back(shape: Shape) -> None:
    """These curves keep the proportions, but if theta_M would lose weight, the average cannot be continued."""
    method = Method(name="lr-decay", shape=shape)
    timeline = Timeline.of([0, 100, 200, 210], "step")
    assert continuation_factors(solve(method, timeline.until(3)), solve(method, timeline)) is None
    even = Timeline.of([0, 100, 200, 300], "step")
    assert continuation_factors(solve(method, even.until(3)), solve(method, even)) == pytest.approx(
        (0.75 if shape == "linear" else math.sqrt(0.75), 0)
    )


def test_uniform_is_exact() -> None:
    """Equal weights are the float64 nearest to 1/N."""
    assert uniform(3) == (1 / 3,) * 3
