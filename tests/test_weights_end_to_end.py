"""Every method through the command line, on unevenly spaced checkpoints, compared with reference averages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ema_cli.weights.reconstruction import gamma_from_sigma_rel
from tests.helpers.exact import debiased_shares, ema_shares, per_step_shares, power_shares, warmup_shares
from tests.helpers.program import Run
from tests.helpers.series import FORMATS, State, load, random_states, reference_average

STEPS = (40, 100, 130, 400, 410)
COUNT = len(STEPS)


def numbers(shares: Any) -> list[float]:
    """Return exact shares as floats."""
    return [float(share) for share in shares]


def lr_curve(shape: Callable[[float], float]) -> list[float]:
    """Return the falls of a learning rate that reaches 0 one mean gap after the last checkpoint."""
    length = (STEPS[-1] - STEPS[0]) * COUNT / (COUNT - 1)
    rates = [shape((step - STEPS[0]) / length) for step in STEPS]
    return [a - b for a, b in pairwise([*rates, 0.0])]


D = Fraction(0.99)
CASES: dict[str, list[float]] = {
    "--decay 0.8": numbers(ema_shares(COUNT, 0.8)),
    "--decay 0.8 --init debias": numbers(debiased_shares(COUNT, 0.8)),
    "--half-life 2": numbers(ema_shares(COUNT, 2**-0.5)),
    "--decay 0.99 --per step": numbers(per_step_shares(STEPS, 1 - D)),
    "--per step --one-minus-decay 1e-3 --init debias": numbers(per_step_shares(STEPS, Fraction(1e-3), debias=True)),
    "--method ema-hold --decay 0.99": numbers(per_step_shares(STEPS, 1 - D, hold=True)),
    "--method ema-hold --decay 0.99 --init debias": numbers(per_step_shares(STEPS, 1 - D, hold=True, debias=True)),
    "--method ema-warmup --decay 0.3": numbers(
        warmup_shares([min(Decimal("0.3"), Decimal(1 + n) / (10 + n)) for n in range(1, COUNT)])
    ),
    "--method ema-warmup --decay 0.999 --warmup inv-gamma --inv-gamma 2 --power 0.75": numbers(
        warmup_shares([1 - (1 + Decimal(n) / 2) ** Decimal("-0.75") for n in range(1, COUNT)])
    ),
    "--method uniform": [1 / COUNT] * COUNT,
    "--method uniform --last 2": [0, 0, 0, 0.5, 0.5],
    "--method uniform-time": numbers(np.trapezoid(np.eye(COUNT), STEPS) / (STEPS[-1] - STEPS[0])),
    "--method ramp": [i / 15 for i in range(1, 6)],
    "--method power --sigma-rel 0.2": numbers(power_shares(STEPS, gamma_from_sigma_rel(0.2) + 1)),
    "--method lr-decay --shape linear": lr_curve(lambda x: 1 - x),
    "--method lr-decay --shape cosine": lr_curve(lambda x: (1 + math.cos(math.pi * x)) / 2),
    "--method lr-decay": lr_curve(lambda x: 1 - math.sqrt(x)),
    "--weights 1,2,3,0,4": [0.1, 0.2, 0.3, 0, 0.4],
    "--weights 1,2,3,0,4 --no-normalize": [1, 2, 3, 0, 4],
}


@pytest.fixture(scope="module", params=["zip", "safetensors"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[State]]:
    """Unevenly spaced checkpoints in one format, and their contents."""
    folder = tmp_path_factory.mktemp("run")
    suffix, save = FORMATS[request.param]
    states = random_states(COUNT)
    paths = [folder / f"step_{step}{suffix}" for step in STEPS]
    for state, path in zip(states, paths, strict=True):
        save(state, path)
    return paths, states


def assert_is_average(output: Path, states: list[State], weights: list[float]) -> None:
    """The output is the reference weighted sum, to a few roundings in float64."""
    found = load(output)
    for name, value in found.items():
        expected = reference_average([state[name] for state in states], weights)
        assert np.allclose(value.numpy(), expected, rtol=1e-13, atol=1e-14 * sum(weights)), name


@pytest.mark.slow
@pytest.mark.parametrize("arguments", CASES)
def test_every_method_is_the_reference_average(
    arguments: str, run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run
) -> None:
    """The options, the weights of the report and the numbers in the file agree."""
    paths, states = run
    done = ema_avg(*paths, *arguments.split(), "--dtype", "float64", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    expected = CASES[arguments]
    assert_is_average(tmp_path / "ema.safetensors", states, expected)
    report = json.loads((tmp_path / "ema.report.json").read_text())
    kept = expected[-len(report["inputs"]) :]
    assert report["averages"][0]["weights"] == pytest.approx(kept, rel=1e-11, abs=1e-300)
    assert report["averages"][0]["diagnostics"]["implied_lr"][0] == pytest.approx(sum(expected))


def test_weights_behind_the_paths_belong_to_them(
    run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run
) -> None:
    """``CKPT:WEIGHT`` in any order on the command line: each weight goes with its checkpoint."""
    paths, states = run
    named = [f"{paths[i]}:{weight}" for i, weight in ((4, 0.5), (0, 1.5), (2, 2))]
    done = ema_avg(*named, "--method", "manual", "--dtype", "float64", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    assert_is_average(tmp_path / "ema.safetensors", [states[i] for i in (0, 2, 4)], [0.375, 0.5, 0.125])


def test_the_number_of_weights_must_fit(run: tuple[list[Path], list[State]], ema_avg: Run) -> None:
    """Too few weights are refused; nothing is guessed."""
    done = ema_avg(*run[0], "--weights", "1,2", "-o", "ema.safetensors")
    assert (done.returncode, "there are 2 weights for 5 checkpoints" in done.stderr) == (2, True)
    assert "there is 1 weight for 5" in ema_avg(*run[0], "--weights", "1", "-o", "ema.safetensors").stderr
    assert ema_avg(*run[0], "--weights", "1,x", "-o", "ema.safetensors").returncode == 2


SWEEPS = {
    "--decay 0.9 --decay 0.99": ["{decay}", "0.9", "0.99"],
    "--half-life 100 --half-life 1000 --per step": ["{half_life}", "100", "1000"],
    "--sigma-rel 0.05 --sigma-rel 0.1": ["{sigma_rel}", "0.05", "0.1"],
    "--one-minus-decay 1e-9 --one-minus-decay 0.1": ["{one_minus_decay}", "1e-09", "0.1"],
    "--method ramp --method uniform": ["{method}", "ramp", "uniform"],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", SWEEPS)
def test_a_sweep_is_one_read_and_the_same_bytes(
    arguments: str, run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run
) -> None:
    """Several averages from one pass are those of several runs; one report has all of them, each output its own."""
    paths, _ = run
    field, *values = SWEEPS[arguments]
    swept = ema_avg(*paths, *arguments.split(), "-o", f"s_{field}.safetensors", "--report", "all.json")
    assert swept.returncode == 0, swept.stderr
    report = json.loads((tmp_path / "all.json").read_text())
    assert len(report["averages"]) == 2
    assert report["summary"]["bytes_read"] == 5 * sum(tensor.nbytes for tensor in load_any(paths[0]).values())
    flag = arguments.split(maxsplit=1)[0]
    rest = ["--per", "step"] if "--per" in arguments else []
    for value in values:
        assert ema_avg(*paths, flag, value, *rest, "-o", "one.safetensors", "--force").returncode == 0
        assert (tmp_path / f"s_{value}.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
        own = json.loads((tmp_path / f"s_{value}.report.json").read_text())
        assert len(own["averages"]) == 1


def load_any(path: Path) -> State:
    """Read a checkpoint with its own library."""
    if path.suffix == ".safetensors":
        return load(path)
    state: State = torch.load(path)
    return state


def test_plan_compares(run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run) -> None:
    """Several decays and methods side by side: shares, effective number, mean age; nothing is written."""
    done = ema_avg(
        "plan", *run[0], "--method", "ema", "--method", "ema-hold", "--method", "uniform", "--half-life", "50",
        "--half-life", "100", COLUMNS="160",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for label in ("ema H=50", "ema H=100", "ema-hold H=50", "ema-hold H=100", "uniform"):
        assert done.stdout.count(label) >= 2
    for title in ("effective", "mean age", "before", "max"):
        assert title in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_many_averages_are_compared_in_one_table(
    run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run
) -> None:
    """Beyond six the shares would not fit side by side; the comparison still has a row for each."""
    decays = [word for k in range(1, 10) for word in ("--decay", f"0.{k}")]
    done = ema_avg("plan", *run[0], *decays)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(" ema")] == [
        f"0.{k}" for k in range(1, 10)
    ]
    assert ema_avg(*run[0], *decays, "-o", "e_{decay}.safetensors").returncode == 0
    assert len(list(tmp_path.glob("e_*.safetensors"))) == 9


def test_the_plan_shows_the_reconstruction(run: tuple[list[Path], list[State]], ema_avg: Run) -> None:
    """u, the estimated error and the unobserved mass are in the terminal and in the document."""
    done = ema_avg("plan", *run[0], "--per", "step", "--decay", "0.99")
    assert "u = median gap x (1-d) = 0.450" in done.stdout
    looks = [0.99 ** (2 * (410 - step)) for step in STEPS[1:]]
    sums = [sum(look * (b - a) ** k for look, (a, b) in zip(looks, pairwise(STEPS), strict=True)) for k in (3, 1)]
    error = 0.01 * math.sqrt(sums[0] / sums[1]) / math.sqrt(12)
    assert f"estimated distance to the true EMA: {100 * error:.1f} % of the last checkpoint's" in done.stdout
    assert f"{100 * 0.99**370:.1f} % of the EMA belongs to steps before the first checkpoint" in done.stdout
    document = json.loads(ema_avg("plan", *run[0], "--per", "step", "--decay", "0.99", "--json").stdout)
    found = document["averages"][0]
    assert found["method"]["per"] == "step"
    assert found["diagnostics"]["window_ratio_u"] == pytest.approx(0.45)
    assert found["diagnostics"]["predicted_error"] == pytest.approx(error)
    assert found["diagnostics"]["unobserved_mass"] == pytest.approx(0.99**370)


@pytest.mark.parametrize("clock", ["tokens", "samples", "epochs"])
def test_the_clock_changes_the_unit_alone(
    clock: str, run: tuple[list[Path], list[State]], tmp_path: Path, ema_avg: Run
) -> None:
    """``--clock`` is printed; the bytes are the same."""
    arguments = (*run[0], "--per", "step", "--decay", "0.99")
    assert ema_avg(*arguments, "-o", "steps.safetensors").returncode == 0
    done = ema_avg(*arguments, "--clock", clock, "-o", "other.safetensors")
    assert f" {clock}; shares: first" in done.stderr
    assert (tmp_path / "steps.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    report = json.loads((tmp_path / "other.report.json").read_text())
    assert report["averages"][0]["diagnostics"]["mean_age_unit"] == clock.removesuffix("s")


def test_epochs_are_not_taken_for_steps(tmp_path: Path, ema_avg: Run) -> None:
    """A decay per step has no meaning for epochs, unless the user says that it is one per epoch."""
    for epoch, state in enumerate(random_states(3), start=1):
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    arguments = (".", "--per", "step", "--decay", "0.5", "-o", "ema.safetensors")
    done = ema_avg(*arguments)
    assert (done.returncode, "numbered in epochs" in done.stderr) == (2, True)
    assert ema_avg(*arguments, "--clock", "epochs").returncode == 0
    for free in ("uniform-time", "lr-decay"):
        assert ema_avg(".", "--method", free, "-o", f"{free}.safetensors").returncode == 0


def test_steps_unknown_is_an_error_with_a_hint(tmp_path: Path, ema_avg: Run) -> None:
    """Without steps nothing is averaged per step, and the hint works."""
    for name, state in zip("abc", random_states(3), strict=True):
        torch.save(state, tmp_path / f"{name}.pt")
    arguments = (*(f"{name}.pt" for name in "abc"), "--per", "step", "--decay", "0.5", "-o", "ema.safetensors")
    done = ema_avg(*arguments)
    assert (done.returncode, "(steps-unknown)" in done.stderr, "--steps" in done.stderr) == (2, True, True)
    assert ema_avg(*arguments, "--steps", "1,2,4").returncode == 0


def test_an_unnormalised_sum_that_overflows_is_refused(tmp_path: Path, ema_avg: Run) -> None:
    """Weights that add up to more than one can overflow the type of the output: an error, not infinity."""
    for step in (1, 2):
        torch.save({"w": torch.full((3,), 3e38)}, tmp_path / f"step_{step}.pt")
    done = ema_avg(".", "--weights", "1,1", "--no-normalize", "-o", "sum.safetensors")
    assert (done.returncode, "6e+38 is too large for float32" in done.stderr) == (3, True)
    assert ema_avg(".", "--weights", "1,1", "-o", "sum.safetensors").returncode == 0
