"""The numbers and the warnings that describe the shares of an average."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.errors import RunWarning, UsageError
from ema_cli.options.weighting import WeightOptions
from ema_cli.text import number, percent
from ema_cli.weights.choices import (
    decay_for_first_share,
    describe_choices,
    half_life_for_first_share,
    short_decay,
    two_digits,
)
from ema_cli.weights.diagnostics import Diagnostics, diagnose
from ema_cli.weights.methods import Decay, Method, Weighting
from ema_cli.weights.reconstruction import ema_linear, gamma_from_sigma_rel
from ema_cli.weights.schedules import ema, uniform
from ema_cli.weights.share_warnings import warn_of_shares
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline
from tests.helpers.exact import ema_shares

EMA = Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="first")


def per_step(value: float, **changes: Any) -> Method:
    """Return a per-step EMA."""
    return Method(**{"name": "ema", "decay": Decay.of(value), "per": "step", "init": "first", **changes})


def every(gap: int, count: int, start: int = 0) -> Timeline:
    """Return checkpoints that are ``gap`` steps apart."""
    return Timeline.of([start + gap * i for i in range(count)], "step")


def look_at(method: Method, timeline: Timeline) -> Diagnostics:
    """Diagnose the weights of a method."""
    return diagnose(method, solve(method, timeline), timeline)


def warnings_of(method: Method, timeline: Timeline) -> dict[str, RunWarning]:
    """Return the warnings about a method, by code."""
    shares = solve(method, timeline)
    found = warn_of_shares(Weighting(method=method, weights=shares, shares=shares), timeline)
    assert len({warning.code for warning in found}) == len(found)
    return {warning.code: warning for warning in found}


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
    weights = ema(len(thetas), Decay.of(decay))
    scales = diagnose(EMA, weights, Timeline(count=len(thetas))).implied_lr
    average = sum(w * theta for w, theta in zip(weights, thetas, strict=True))
    updates = [b - a for a, b in pairwise(thetas)]
    parts = thetas[0] + sum(scale * update for scale, update in zip(scales[1:], updates, strict=True))
    assert parts == pytest.approx(average, abs=1e-9)
    assert scales[0] == pytest.approx(1, rel=1e-14)
    assert list(scales) == sorted(scales, reverse=True)


def test_implied_lr_of_the_fold_is_one_minus_powers() -> None:
    """For the EMA that starts at the first checkpoint, W_i = 1 - d^(N-i+1)."""
    scales = diagnose(EMA, ema(6, Decay.of(0.8)), Timeline(count=6)).implied_lr
    assert scales[1:] == pytest.approx([1 - 0.8 ** (6 - i + 1) for i in range(2, 7)], rel=1e-14)


@given(decay=st.floats(1e-9, 0.99), count=st.integers(1, 40))
@settings(deadline=None)
def test_diagnostics_are_what_they_say(decay: float, count: int) -> None:
    """Effective number, mean age, first, last and largest share follow from the exact weights."""
    shares = ema_shares(count, decay)
    found = diagnose(EMA, ema(count, Decay.of(decay)), every(10, count))
    assert found.effective_checkpoints == pytest.approx(float(1 / sum(w * w for w in shares)), rel=1e-12)
    age = sum(w * 10 * (count - 1 - i) for i, w in enumerate(shares))
    assert found.mean_age == pytest.approx(float(age), rel=1e-12)
    assert found.mean_age_unit == "step"
    assert (found.first, found.last) == pytest.approx((float(shares[0]), float(shares[-1])), rel=1e-12)
    assert found.largest == pytest.approx(float(max(shares)), rel=1e-12)
    assert (found.window_ratio_u, found.unobserved_mass, found.predicted_error) == (None, None, None)


def test_uniform_counts_every_checkpoint() -> None:
    """N checkpoints with equal shares are N effective checkpoints, and the mean age is half of the span."""
    found = diagnose(Method(name="uniform"), uniform(5), Timeline(count=5))
    assert found.effective_checkpoints == pytest.approx(5, rel=1e-15)
    assert found.mean_age == pytest.approx(2, rel=1e-15)
    assert found.mean_age_unit == "checkpoint"


def test_weights_that_are_not_normalised_are_described_all_the_same() -> None:
    """Effective number and age do not depend on the sum; the implied rate depends on it."""
    found = diagnose(Method(name="manual", normalize=False), (2.0, 2.0), Timeline(count=2))
    assert (found.effective_checkpoints, found.mean_age, found.implied_lr) == (2, 0.5, (4.0, 2.0))


def test_mean_age_of_a_long_window_is_that_of_the_ema() -> None:
    """A per-step EMA over many windows has mean age d/(1-d), whatever the spacing."""
    found = look_at(per_step(0.99), every(37, 200))
    assert found.mean_age == pytest.approx(99, rel=1e-9)


def test_the_numbers_of_a_reconstruction() -> None:
    """U = median gap x (1-d); d^(T-t_1) is unobserved; the error is u/sqrt(12), or u/sqrt(3) if held."""
    timeline = Timeline.of([100, 200, 300, 600], "step")
    found = look_at(per_step(0.999), timeline)
    assert found.window_ratio_u == pytest.approx(0.1)
    assert found.unobserved_mass == pytest.approx(0.999**500)
    gap = math.sqrt(sum(0.999 ** (2 * age) * d**3 for age, d in ((400, 100), (300, 100), (0, 300))))
    gap /= math.sqrt(sum(0.999 ** (2 * age) * d for age, d in ((400, 100), (300, 100), (0, 300))))
    assert found.predicted_error == pytest.approx(gap * 0.001 / math.sqrt(12))
    held = look_at(per_step(0.999, name="ema-hold"), timeline)
    assert held.predicted_error == pytest.approx(gap * 0.001 / math.sqrt(3))
    assert look_at(per_step(0.999), every(100, 80)).predicted_error == pytest.approx(0.1 / math.sqrt(12))
    assert look_at(per_step(0.5), timeline).predicted_error == 1
    assert look_at(per_step(0.999), every(100, 1)).unobserved_mass == 1


def test_the_unobserved_part_of_a_power_profile() -> None:
    """(t_1/T)^(gamma+1) of it belongs to steps before the first checkpoint; there is no u."""
    found = look_at(Method(name="power", sigma_rel=0.1), Timeline.of([500, 1000], "step"))
    assert found.unobserved_mass == pytest.approx(0.5 ** (gamma_from_sigma_rel(0.1) + 1))
    assert (found.window_ratio_u, found.predicted_error) == (None, None)
    assert look_at(Method(name="power", sigma_rel=0.1), every(10, 3)).unobserved_mass == 0


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_short_decay_stays_a_decay(decay: float) -> None:
    """A decay is shown in a form that can be passed back: below 1, and close to it in 1 - d."""
    shown = float(short_decay(decay))
    assert 0 <= shown <= 1
    assert 1 - shown == pytest.approx(1 - decay, rel=0.06)
    if 1 - decay > 1e-12:
        assert shown < 1


@pytest.mark.parametrize(
    ("value", "text"), [(144.5, "140"), (0.0421, "0.042"), (9.96, "10.0"), (1, "1.0"), (123456, "120000")]
)
def test_two_digits_are_written_out(value: float, text: str) -> None:
    """Hints contain numbers that can be typed."""
    assert two_digits(value) == text


@pytest.mark.parametrize("count", [2, 3, 8, 100, 1000, 5000])
def test_the_hint_for_a_dominating_first_checkpoint_works(count: int) -> None:
    """The hint names a decay that leaves the first checkpoint about the tenth that it promises."""
    method = Method(name="ema", decay=Decay.of(1 - 1e-6), per="checkpoint", init="first")
    found = warnings_of(method, Timeline(count=count))
    assert list(found) == ["first-dominates"]
    better = re.search(r"--decay ([\d.]+) \(leaves it ([\d.]+) %\)", found["first-dominates"].hint)
    assert better is not None
    first = ema(count, Decay.of(float(better.group(1))))[0]
    assert first == pytest.approx(0.1, rel=0.2)
    assert float(better.group(2)) == pytest.approx(100 * first, abs=0.06)
    assert "--per step" not in found["first-dominates"].hint
    assert "--per step" in warnings_of(method, every(5, count))["first-dominates"].hint


@pytest.mark.parametrize(("gap", "count"), [(100, 5), (1, 400), (10_000, 2)])
def test_the_hint_for_a_long_window_works(gap: int, count: int) -> None:
    """Per step, the half-life of the hint leaves a tenth before the first checkpoint."""
    found = warnings_of(per_step(1 - 1e-9), every(gap, count, 50))
    assert list(found) == ["first-dominates", "unobserved-mass"]
    for warning in found.values():
        better = re.search(r"--half-life ([\d.]+) \(then ([\d.]+) % is from before", warning.hint)
        assert better is not None
        half_life = float(better.group(1))
        unseen = look_at(per_step(0, decay=Decay.of_half_life(half_life)), every(gap, count, 50)).unobserved_mass
        assert unseen == pytest.approx(0.1, rel=0.25)
        assert unseen is not None
        assert float(better.group(2)) == pytest.approx(100 * unseen, abs=0.06)


@given(st.integers(1, 10**7), st.integers(3, 1000))
def test_the_half_life_of_the_hint_has_no_such_warning(gap: int, count: int) -> None:
    """It is rounded down, so that it leaves a tenth or less, and the same hint does not come back."""
    span = gap * (count - 1)
    half_life = float(half_life_for_first_share(span))
    assert 0.9 <= half_life / (span * math.log10(2)) <= 1
    method = per_step(0, decay=Decay.of_half_life(half_life))
    assert "unobserved-mass" not in warnings_of(method, every(gap, count))


def test_the_unobserved_mass_warns_above_a_tenth() -> None:
    """A reconstruction that depends on steps before the first checkpoint states how much."""
    assert warnings_of(per_step(0.99), every(10, 24)) == {}
    (warning,) = warnings_of(per_step(0.99), every(10, 20)).values()
    assert warning.code == "unobserved-mass"
    assert warning.message.startswith(percent(0.99**190))
    assert warnings_of(Method(name="power", sigma_rel=0.25), every(10, 9, 100)).keys() == {"unobserved-mass"}
    assert "--sigma-rel" in warnings_of(Method(name="power", sigma_rel=0.25), every(10, 9, 100))["unobserved-mass"].hint


def test_a_window_shorter_than_the_spacing_warns() -> None:
    """U > 1: the result is nearly the last checkpoint."""
    assert "window-too-short" not in warnings_of(per_step(0.9), every(10, 30))
    (warning,) = warnings_of(per_step(0.9), every(50, 30)).values()
    assert warning.code == "window-too-short"
    assert "the window of 10 steps is shorter than the 50 steps" in warning.message
    better = re.search(r"--half-life (\d+)", warning.hint)
    assert better is not None
    assert 50 * Decay.of_half_life(float(better.group(1))).complement == pytest.approx(0.1, rel=0.1)


def test_fewer_checkpoints_than_the_window_holds_warn() -> None:
    """1/(1-d) > N without a dominating first checkpoint; per step, a window longer than the span."""
    (warning,) = warnings_of(Method(name="ema", decay=Decay.of(0.9), init="first"), Timeline(count=8)).values()
    assert warning.code == "window-not-filled"
    assert "is 10 checkpoints, and there are 8" in warning.message
    (warning,) = warnings_of(per_step(0.99, init="debias"), every(10, 8)).values()
    assert warning.code == "window-not-filled"
    assert "the window of 100 steps is longer than the 70 steps" in warning.message


@pytest.mark.parametrize(
    "method",
    [
        Method(name="ema", decay=Decay.of(0.999), per="checkpoint", init="debias"),
        Method(name="lr-decay", shape="linear"),
        Method(name="ema-hold", decay=Decay.of_complement(1e-9), per="step", init="debias"),
    ],
    ids=lambda method: method.label,
)
def test_a_plain_mean_under_another_name_warns(method: Method) -> None:
    """Shares that are all but equal are reported as equal."""
    timeline = Timeline.of([99, 100, 101, 102], "step") if method.name == "ema-hold" else every(100, 5)
    (warning,) = warnings_of(method, timeline if method.name != "ema-hold" else every(1, 5)).values()
    assert warning.code == "plain-mean"
    assert "--method uniform" in warning.hint


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (Method(name="ema", decay=Decay.of(0.5), per="checkpoint", init="first"), 2),
        (Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="first"), 20),
        (Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="debias"), 20),
        (Method(name="ema-warmup", decay=Decay.of(0.9999), per="checkpoint", warmup="tf"), 10),
        (Method(name="ema-hold", decay=Decay.of(0.99), per="step", init="first"), 40),
        (Method(name="power", sigma_rel=0.1), 10),
        (Method(name="lr-decay", shape="1-sqrt"), 10),
        (Method(name="ramp"), 10),
        (Method(name="uniform-time"), 10),
        (Method(name="uniform"), 1000),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_reasonable_shares_are_not_warned_about(method: Method, count: int) -> None:
    """Good choices give no warning."""
    assert warnings_of(method, every(10, count)) == {}


def test_one_checkpoint_is_warned_about() -> None:
    """An average of one checkpoint is a copy, which is rarely intended."""
    assert warnings_of(EMA, Timeline(count=1)).keys() == {"one-checkpoint"}


def choices(timeline: Timeline, *names: Any, per: Any = None) -> tuple[str, str]:
    """Describe the choices for these checkpoints."""
    return describe_choices(timeline, names or ("ema",), per)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 230, 500, 2302])
@pytest.mark.parametrize("known", [False, True])
def test_every_choice_offered_can_be_made(count: int, known: bool) -> None:
    """Each row of the table shown without a decay has valid options and the shares that they give."""
    timeline = every(100, count) if known else Timeline(count=count)
    message, hint = choices(timeline)
    assert message.startswith("neither --decay nor --half-life was given")
    rows = [line.replace("< 0.0001", "<0.0001").split() for line in message.splitlines() if line.startswith("  --")]
    assert any("--per" in row for row in rows) == (known and count > 1)
    for row in rows:
        words = dict(zip(row[0:-5:2], row[1:-5:2], strict=True))
        made = WeightOptions(
            method=tuple(words[flag] for flag in ["--method"] if flag in words),  # type: ignore[misc]
            decay=tuple(float(words[flag]) for flag in ["--decay"] if flag in words),
            half_life=tuple(float(words[flag]) for flag in ["--half-life"] if flag in words),
            per=words.get("--per"),  # type: ignore[arg-type]
        )
        made.check_weights()
        (method,) = made.expand()
        found = look_at(method, timeline)
        shown = f"{percent(found.first)} {percent(found.last)}".replace("< 0.0001", "<0.0001")
        assert " ".join(row[-5:-1]) == shown
        assert row[-1] == number(found.effective_checkpoints)
    assert "--decay" in hint


def test_choices_for_other_methods_are_theirs() -> None:
    """Methods by steps are offered half-lives in steps, the warm-up caps; without steps they say what is missing."""
    held, hint = choices(every(100, 10), "ema-hold")
    assert "--method ema-hold --half-life 270" in held
    assert hint.startswith("--method ema-hold --half-life 270")
    assert "--method ema-warmup --decay 0.9999" in choices(Timeline(count=10), "ema-warmup")[0]
    assert "--decay 0.77" not in choices(every(100, 10), per="step")[0]
    for asked in (("ema-hold",), ("ema",)):
        with pytest.raises(UsageError, match="steps-unknown"):
            choices(Timeline(count=10), *asked, per="step" if asked == ("ema",) else None)


def test_choices_show_the_true_shares() -> None:
    """A row of the table has the first share, the last share and the effective number of its decay."""
    row = next(line for line in choices(Timeline(count=5))[0].splitlines() if "--decay 0.5 " in line)
    assert row.split()[2:] == ["6.2", "%", "50.0", "%", "2.98"]


def test_fitting_parameters_leave_a_tenth() -> None:
    """Both ways to choose a window leave the first checkpoint about a tenth."""
    assert ema(20, Decay.of(float(decay_for_first_share(19))))[0] == pytest.approx(0.1, rel=0.1)
    half_life = Decay.of_half_life(float(half_life_for_first_share(1900)))
    assert ema_linear([100 * i for i in range(20)], half_life)[0] == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.1234, "12.3 %"), (1e-5, "0.001 %"), (4e-6, "0.0004 %"), (4e-9, "< 0.0001 %")],
)
def test_shares_are_shown_in_percent(share: float, text: str) -> None:
    """No number other than zero is shown as zero."""
    assert percent(share) == text
