"""The weights of an average against the recurrence itself in exact arithmetic, and the numbers that describe them."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ema_cli.records import Method, Weighting
from ema_cli.weights.choices import describe_choices
from ema_cli.weights.diagnostics import diagnose, percent, short_decay, warn_about
from ema_cli.weights.schedules import (
    decay_for_first_share,
    decay_from_half_life,
    ema,
    ema_debiased,
    solve,
    uniform,
)
from tests.exact import debiased_shares, ema_shares

DECAYS = st.one_of(
    st.floats(1e-9, 1, exclude_max=True),
    st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999, math.nextafter(1, 0)]),
)
COUNTS = st.integers(1, 40)


def assert_close(weights: tuple[float, ...], exact: list[Fraction]) -> None:
    """Each weight is within a few roundings of the exact one."""
    for weight, share in zip(weights, exact, strict=True):
        assert weight >= 0
        assert abs(Fraction(weight) - share) <= share * Fraction(2) ** -48 + Fraction(2) ** -1070


@given(decay=DECAYS, count=COUNTS)
@settings(deadline=None)
@example(decay=math.nextafter(1, 0), count=40)
@example(decay=5e-324, count=4)
def test_ema_weights_are_those_of_the_recurrence(decay: float, count: int) -> None:
    """The closed form is the literal fold that starts at the first checkpoint, and sums to one."""
    weights = ema(count, decay)
    assert_close(weights, ema_shares(count, decay))
    assert math.fsum(weights) == pytest.approx(1, rel=count * 2**-52)


@given(decay=DECAYS, count=COUNTS)
@settings(deadline=None)
@example(decay=math.nextafter(1, 0), count=40)
@example(decay=5e-324, count=4)
def test_debiased_weights_are_those_of_the_recurrence_from_zero(decay: float, count: int) -> None:
    """``debias`` is the fold that starts at zero, divided by the weight that it has gathered; it sums to one."""
    weights = ema_debiased(count, decay)
    assert_close(weights, debiased_shares(count, decay))
    assert math.fsum(weights) == pytest.approx(1, rel=count * 2**-50)


@pytest.mark.parametrize("solver", [ema, ema_debiased])
def test_decay_zero_takes_the_last_checkpoint_alone(solver: type) -> None:
    """With d = 0 nothing but the last checkpoint has a share, exactly."""
    assert solver(4, 0.0) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("method", [Method(name="uniform"), Method(name="ema", decay=0.9, init="first")])
def test_one_checkpoint_has_the_whole_share(method: Method) -> None:
    """The average of one checkpoint is that checkpoint."""
    assert solve(method, 1) == (1.0,)


def test_solve_dispatches_on_the_method() -> None:
    """``solve`` gives each method its own weights."""
    assert solve(Method(name="uniform"), 4) == (0.25,) * 4
    assert solve(Method(name="ema", decay=0.5, init="first"), 3) == (0.25, 0.25, 0.5)
    assert solve(Method(name="ema", decay=0.5, init="debias"), 3) == pytest.approx((1 / 7, 2 / 7, 4 / 7), rel=1e-15)


@given(half_life=st.floats(1e-2, 1e6))
@settings(deadline=None)
def test_half_life_inverts_the_decay(half_life: float) -> None:
    """After H checkpoints the decay has halved a share: d^H = 1/2."""
    decay = decay_from_half_life(half_life)
    assert 0 <= decay < 1
    assert half_life * math.log(decay) == pytest.approx(math.log(0.5), rel=1e-9) if decay > 0 else half_life < 1e-2


def test_a_share_halves_after_the_half_life() -> None:
    """With a half-life of 3 the weight three checkpoints earlier is half as large."""
    weights = ema(12, decay_from_half_life(3))
    for earlier, later in zip(weights[1:], weights[4:], strict=False):
        assert earlier / later == pytest.approx(0.5, rel=1e-12)


@given(count=st.integers(2, 10_000), share=st.floats(0.01, 0.9))
@settings(deadline=None)
def test_the_decay_for_a_first_share_leaves_that_share(count: int, share: float) -> None:
    """``decay_for_first_share`` is the inverse of w_1 = d^(N-1)."""
    assert decay_for_first_share(count, share) ** (count - 1) == pytest.approx(share, rel=1e-9)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.lists(st.integers(-1000, 1000), min_size=n, max_size=n),
        )
    )
)
@settings(deadline=None)
def test_implied_lr_scales_the_updates(case: tuple[float, list[int]]) -> None:
    """Summation by parts: the average is theta_1 plus the updates, each scaled by its W_i."""
    decay, thetas = case
    weights = ema(len(thetas), decay)
    scales = diagnose(weights, None, "").implied_lr
    average = sum(w * theta for w, theta in zip(weights, thetas, strict=True))
    updates = [b - a for a, b in pairwise(thetas)]
    parts = thetas[0] + sum(scale * update for scale, update in zip(scales[1:], updates, strict=True))
    assert parts == pytest.approx(average, abs=1e-9)
    assert scales[0] == pytest.approx(1, rel=1e-14)
    assert list(scales) == sorted(scales, reverse=True)


def test_implied_lr_of_the_fold_is_one_minus_powers() -> None:
    """For the EMA that starts at the first checkpoint, W_i = 1 - d^(N-i+1)."""
    scales = diagnose(ema(6, 0.8), None, "").implied_lr
    assert scales[1:] == pytest.approx([1 - 0.8 ** (6 - i + 1) for i in range(2, 7)], rel=1e-14)


@given(decay=st.floats(1e-9, 0.99), count=COUNTS)
@settings(deadline=None)
def test_diagnostics_are_what_they_say(decay: float, count: int) -> None:
    """Effective number, mean age, first, last and largest share follow from the exact weights."""
    shares = ema_shares(count, decay)
    found = diagnose(ema(count, decay), [10 * i for i in range(count)], "step")
    assert found.effective_checkpoints == pytest.approx(float(1 / sum(w * w for w in shares)), rel=1e-12)
    age = sum(w * 10 * (count - 1 - i) for i, w in enumerate(shares))
    assert found.mean_age == pytest.approx(float(age), rel=1e-12)
    assert found.mean_age_unit == "step"
    assert (found.first, found.last) == pytest.approx((float(shares[0]), float(shares[-1])), rel=1e-12)
    assert found.largest == pytest.approx(float(max(shares)), rel=1e-12)


def test_uniform_counts_every_checkpoint() -> None:
    """Equal shares make N checkpoints count as N, and the mean age half the way."""
    found = diagnose(uniform(5), None, "epoch")
    assert found.effective_checkpoints == pytest.approx(5, rel=1e-15)
    assert found.mean_age == pytest.approx(2, rel=1e-15)
    assert found.mean_age_unit == "checkpoint"


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_short_decay_stays_a_decay(decay: float) -> None:
    """What is shown of a decay is one that can be given back: below 1, and close to it in 1 - d."""
    shown = float(short_decay(decay))
    assert 0 <= shown <= 1
    assert 1 - shown == pytest.approx(1 - decay, rel=0.06)
    if 1 - decay > 1e-12:
        assert shown < 1


@pytest.mark.parametrize("count", [2, 3, 8, 100, 1000, 5000])
def test_the_way_out_of_a_dominating_first_checkpoint_works(count: int) -> None:
    """The hint names a decay that leaves the first checkpoint about the tenth that it promises."""
    method = Method(name="ema", decay=1 - 1e-6, init="first")
    (notice,) = warn_about(Weighting(method=method, weights=solve(method, count)))
    assert notice.code == "first-dominates"
    better = re.search(r"--decay ([\d.]+) \(leaves it ([\d.]+) %\)", notice.hint)
    assert better is not None
    first = ema(count, float(better.group(1)))[0]
    assert first == pytest.approx(0.1, rel=0.2)
    assert float(better.group(2)) == pytest.approx(100 * first, abs=0.06)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (Method(name="ema", decay=0.5, init="first"), 2),
        (Method(name="ema", decay=0.9, init="first"), 20),
        (Method(name="ema", decay=0.999, init="debias"), 5),
        (Method(name="uniform"), 1000),
    ],
)
def test_reasonable_shares_are_not_warned_about(method: Method, count: int) -> None:
    """A first share of at most a half, debiasing and uniform weights need no warning."""
    assert warn_about(Weighting(method=method, weights=solve(method, count))) == []


def test_one_checkpoint_is_warned_about() -> None:
    """An average of one checkpoint is a copy, which is rarely meant."""
    method = Method(name="ema", decay=0.9, init="first")
    assert [notice.code for notice in warn_about(Weighting(method=method, weights=(1.0,)))] == ["one-checkpoint"]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 500, 2000])
def test_every_choice_offered_can_be_made(count: int) -> None:
    """The table shown without a decay holds only decays below 1, and the hint one of them."""
    message, hint = describe_choices(count)
    decays = [float(text) for text in re.findall(r"--decay ([\d.]+)", message + hint)]
    assert decays
    assert all(0 <= decay < 1 for decay in decays)
    assert message.startswith("neither --decay nor --half-life was given")


def test_choices_show_the_true_shares() -> None:
    """A row of the table holds the first share, the last share and the effective number of its decay."""
    message, _ = describe_choices(5)
    row = next(line for line in message.splitlines() if "--decay 0.5 " in line)
    assert row.split()[2:] == ["6.2", "%", "50.0", "%", "3.0"]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0 %"), (1, "100.0 %"), (0.1234, "12.3 %"), (1e-5, "0.001 %"), (4e-9, "4e-07 %")]
)
def test_a_share_that_is_not_zero_never_reads_as_zero(share: float, text: str) -> None:
    """Percentages have one decimal, but small ones keep their first digit."""
    assert percent(share) == text
