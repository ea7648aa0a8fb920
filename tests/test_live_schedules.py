"""The schedules of the live EMA: against the command line's weights, torch's classes, and formulas in exact numbers."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ema_cli import EMA
from ema_cli.weights.methods import WIDEST_SIGMA_REL, Decay, Method
from ema_cli.weights.solve import solve
from ema_cli.weights.timeline import Timeline
from ema_cli.weights.updates import share_of_update
from tests.helpers.live_training import Weights, assert_close, folded, move_weights, weights_of

WARM = {"name": "ema-warmup", "per": "checkpoint"}
INV_GAMMA = {"warmup": "inv-gamma", "inv_gamma": 2.0, "power": 0.75}


def run(steps: int, **options: Any) -> tuple[EMA, list[Weights]]:
    """Return an EMA in 64 bits after a number of steps, and the weights of each."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = EMA(model, dtype=torch.float64, **options)
    history = []
    for seed in range(steps):
        move_weights(model, seed)
        ema.update()
        history.append(weights_of(model))
    return ema, history


def weighted(history: list[Weights], shares: tuple[float, ...]) -> Weights:
    """Return the weighted sum of the weights of several steps."""
    total: Weights = {}
    for weights, share in zip(history, shares, strict=True):
        for name, tensor in weights.items():
            total[name] = total.get(name, 0) + share * tensor.double()
    return total


METHODS = [
    ({"decay": 0.9}, Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="first")),
    ({"decay": 0.0}, Method(name="ema", decay=Decay.of(0.0), per="checkpoint", init="first")),
    ({"one_minus_decay": 1e-6}, Method(name="ema", decay=Decay.of_complement(1e-6), per="checkpoint", init="first")),
    ({"half_life": 7}, Method(name="ema", decay=Decay.of_half_life(7), per="checkpoint", init="first")),
    (
        {"half_life": 7, "init": "debias"},
        Method(name="ema", decay=Decay.of_half_life(7), per="checkpoint", init="debias"),
    ),
    ({"decay": 0.9, "method": "ema-warmup"}, Method(**WARM, decay=Decay.of(0.9), warmup="tf")),  # type: ignore[arg-type]
    ({"decay": 0.0, "method": "ema-warmup"}, Method(**WARM, decay=Decay.of(0.0), warmup="tf")),  # type: ignore[arg-type]
    ({"decay": 0.99, **INV_GAMMA}, Method(**WARM, decay=Decay.of(0.99), **INV_GAMMA)),  # type: ignore[arg-type]
    ({"method": "uniform"}, Method(name="uniform")),
]


@pytest.mark.parametrize(("options", "method"), METHODS, ids=str)
def test_every_step_as_the_command_line_weighs_it(options: dict[str, Any], method: Method) -> None:
    """The live average of N steps is the weighted sum that the command line makes of a checkpoint of each."""
    for steps in (1, 2, 3, 40):
        ema, history = run(steps, **options)
        assert ema.methods == (method,)
        assert_close(ema.shadow, weighted(history, solve(method, Timeline(count=steps))), 1e-12)


@pytest.mark.parametrize("init", ["first", "debias"])
@pytest.mark.parametrize("every", [2, 7, 40])
def test_every_kth_step_as_the_command_line_weighs_it(init: Any, every: int) -> None:
    """With ``every=k`` it is ``ema-hold`` over checkpoints of every k-th step, and ``uniform`` over the same."""
    ema, history = run(45, half_life=(7, 100), init=init, every=every)
    steps = tuple(range(every, 46, every))
    timeline = Timeline(count=len(steps), steps=steps, unit="step")
    for number, half_life in enumerate((7, 100)):
        method = Method(name="ema-hold", decay=Decay.of_half_life(half_life), per="step", init=init)
        expected = weighted(history[every - 1 :: every], solve(method, timeline))
        assert_close(ema.average_of(number), expected, 1e-12)
    ema, _ = run(45, method="uniform", every=every)
    expected = weighted(history[every - 1 :: every], solve(Method(name="uniform"), timeline))
    assert_close(ema.shadow, expected, 1e-12)


@pytest.mark.parametrize(
    ("options", "function"),
    [({"decay": 0.97}, get_ema_multi_avg_fn(0.97)), ({"method": "uniform"}, get_swa_multi_avg_fn())],
)
def test_as_torch_averages(options: dict[str, Any], function: Any) -> None:
    """The same values as ``AveragedModel`` with torch's functions for EMA and SWA."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    ema, judge = EMA(model, **options), AveragedModel(model, multi_avg_fn=function)
    for seed in range(30):
        move_weights(model, seed)
        ema.update()
        judge.update_parameters(model)
    expected = {name: tensor.detach() for name, tensor in judge.module.named_parameters()}
    assert_close(ema.shadow, expected, 1e-6)


def test_debias_as_optax_does_it() -> None:
    """From zero, divided by 1 - d^n: ``optax.ema(debias=True)``, which also holds after the first step."""
    for steps in (1, 2, 30):
        ema, history = run(steps, decay=0.95, init="debias")
        from_zero = folded([{name: torch.zeros_like(one) for name, one in history[0].items()}, *history], 0.95)
        assert_close(ema.shadow, {name: one / (1 - 0.95**steps) for name, one in from_zero.items()}, 1e-12)


def test_warm_up_as_tensorflow_does_it() -> None:
    """``register`` has the initial values; the n-th update decays by min(d, (1 + n) / (10 + n)), n = 1, 2, ..."""
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.6, method="ema-warmup", dtype=torch.float64)
    ema.register()
    expected = folded([weights_of(model)], 0)
    for n in range(1, 25):
        move_weights(model, n)
        ema.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = {
            name: decay * expected[name] + (1 - decay) * one.double() for name, one in weights_of(model).items()
        }
    assert_close(ema.shadow, expected, 1e-12)


def test_warm_up_every_kth_step() -> None:
    """An update of k steps has the product of the decays of these steps."""
    ema, history = run(30, decay=0.99, method="ema-warmup", every=5)
    expected = folded(history[4:5], 0)
    for step in range(10, 31, 5):
        decay = math.prod(min(0.99, (1 + n) / (10 + n)) for n in range(step - 9, step - 4))
        expected = {
            name: decay * expected[name] + (1 - decay) * one.double() for name, one in history[step - 1].items()
        }
    assert_close(ema.shadow, expected, 1e-12)


GAMMAS = {0.05: "16.97", 0.10: "6.94"}
"""As the paper gives them (EDM2, section 3.1), rounded."""


def exact_gamma(sigma_rel: float) -> Decimal:
    """Return the root of (g+2)^2 (g+3) s^2 = g + 1 by bisection, to 40 digits."""
    square = Decimal(sigma_rel) ** 2
    low, high = Decimal(0), 1 / Decimal(sigma_rel)
    for _ in range(150):
        middle = (low + high) / 2
        below = (middle + 2) ** 2 * (middle + 3) * square < middle + 1
        low, high = (middle, high) if below else (low, middle)
    return low


@pytest.mark.parametrize("every", [1, 10])
def test_the_two_averages_of_edm2(every: int) -> None:
    """Widths 0.05 and 0.10 at once: w_1 = F(t_1), w_i = F(t_i) - F(t_(i-1)), F(t) = (t/T)^(gamma+1), to 40 digits."""
    ema, history = run(60, sigma_rel=tuple(GAMMAS), every=every)
    times = [Decimal(step) for step in range(every, 61, every)]
    with localcontext(prec=40):
        for number, (sigma_rel, rounded) in enumerate(GAMMAS.items()):
            gamma = exact_gamma(sigma_rel)
            assert f"{gamma:.2f}" == rounded
            before = [Decimal(0), *((time / times[-1]) ** (gamma + 1) for time in times)]
            shares = tuple(float(later - earlier) for earlier, later in pairwise(before))
            expected = weighted(history[every - 1 :: every], shares)
            assert_close(ema.average_of(number), expected, 1e-12)


def test_the_power_average_as_the_command_line_weighs_it() -> None:
    """The command line has lines between checkpoints; over every step that is nearly the same."""
    steps = tuple(range(1, 401))
    shares = solve(Method(name="power", sigma_rel=0.1), Timeline(count=400, steps=steps, unit="step"))
    live = unrolled(Method(name="power", sigma_rel=0.1), steps)
    assert sum(abs(a - b) for a, b in zip(shares, live, strict=True)) < 0.02


def test_a_power_average_counts_from_the_beginning_of_training() -> None:
    """What ``register`` found at step 0 has no part; at a later step it has the part of all before."""
    model = nn.Linear(3, 2)
    ema = EMA(model, sigma_rel=0.1, dtype=torch.float64)
    ema.register()
    move_weights(model, 0)
    ema.update()
    assert_close(ema.shadow, folded([weights_of(model)], 0), 1e-15)
    ema.register(step=100)
    before = weights_of(model)
    move_weights(model, 1)
    ema.update()
    with localcontext(prec=40):
        kept = float((Decimal(100) / Decimal(101)) ** (exact_gamma(0.1) + 1))
    assert_close(ema.shadow, weighted([before, weights_of(model)], (kept, 1 - kept)), 1e-12)


def unrolled(method: Method, steps: tuple[int, ...]) -> tuple[float, ...]:
    """Return the weights of updates at steps, from the share of each."""
    weights = [1.0]
    for number, (last, step) in enumerate(pairwise(steps), start=1):
        share = share_of_update(method, first_step=steps[0], last_step=last, step=step, updates=number)
        assert 0 <= share <= 1
        weights = [*(weight * (1 - share) for weight in weights), share]
    return tuple(weights)


growing = st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True).map(lambda steps: tuple(sorted(steps)))
decays = st.one_of(
    st.floats(0, 1, exclude_max=True).map(Decay.of),
    st.floats(-15, 0).map(lambda exponent: Decay.of_complement(10**exponent)),
    st.floats(-3, 8).map(lambda exponent: Decay.of_half_life(10**exponent)),
)


@given(steps=growing, decay=decays, init=st.sampled_from(["first", "debias"]))
def test_shares_of_an_ema(steps: tuple[int, ...], decay: Decay, init: Any) -> None:
    """For any steps and decay the shares are in [0, 1] and unroll to the closed form."""
    method = Method(name="ema", decay=decay, per="checkpoint", init=init)
    held = Method(name="ema-hold", decay=decay, per="step", init=init)
    expected = solve(held, Timeline(count=len(steps), steps=steps, unit="step"))
    assert unrolled(method, steps) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@given(count=st.integers(1, 60), decay=decays, inv_gamma=st.floats(0.1, 100), power=st.floats(0.1, 2), tf=st.booleans())
def test_shares_of_a_warm_up(*, count: int, decay: Decay, inv_gamma: float, power: float, tf: bool) -> None:
    """Over consecutive steps they unroll to the closed form."""
    form: dict[str, Any] = {"warmup": "tf"} if tf else {"warmup": "inv-gamma", "inv_gamma": inv_gamma, "power": power}
    method = Method(name="ema-warmup", decay=decay, per="checkpoint", **form)
    expected = solve(method, Timeline(count=count))
    assert unrolled(method, tuple(range(5, 5 + count))) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@given(steps=growing, sigma_rel=st.floats(1e-3, WIDEST_SIGMA_REL))
def test_shares_of_a_power_profile(steps: tuple[int, ...], sigma_rel: float) -> None:
    """They unroll to the differences of F(t) = (t/T)^(gamma+1), computed to 40 digits."""
    with localcontext(prec=40):
        exponent = exact_gamma(sigma_rel) + 1
        before = [Decimal(0), *((Decimal(step) / steps[-1]) ** exponent for step in steps)]
        expected = [float(later - earlier) for earlier, later in pairwise(before)]
    found = unrolled(Method(name="power", sigma_rel=sigma_rel), steps)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(steps=growing)
def test_shares_of_a_uniform_average(steps: tuple[int, ...]) -> None:
    """Each step has the same weight, whatever is between them."""
    expected = [float(Fraction(1, len(steps)))] * len(steps)
    assert unrolled(Method(name="uniform"), steps) == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_keeps_its_digits_near_one() -> None:
    """The share of ten steps with 1 - d of 1e-12 is 1e-11, not what is left after subtracting from 1."""
    method = Method(name="ema-warmup", decay=Decay.of_complement(1e-12), per="checkpoint", warmup="tf")
    late = 10**14
    share = share_of_update(method, first_step=0, last_step=late, step=late + 10, updates=late)
    assert share == pytest.approx(1e-11, rel=1e-9)
