"""The methods: what the options mean, the names of the methods, and that the help defines them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ema_cli
from ema_cli.cli.app import app
from ema_cli.errors import UsageError
from ema_cli.options.average import make_options
from ema_cli.options.weighting import WeightOptions, split_weights
from ema_cli.weights.methods import DEFAULT_POWER, SPECS, Decay, Method, decay_text
from tests.helpers.series import random_states, write_series


def meant(**options: Any) -> list[Method]:
    """Return the methods that options of the weights mean."""
    return make_options("run", **options).expand()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"decay": 0.9}, "ema"),
        ({"sigma_rel": 0.1}, "power"),
        ({"shape": "cosine"}, "lr-decay"),
        ({"weights": (1, 2)}, "manual"),
        ({"warmup": "tf", "decay": 0.9}, "ema-warmup"),
    ],
)
def test_a_parameter_names_its_method(options: dict[str, Any], name: str) -> None:
    """Options of a single method select it."""
    (method,) = meant(**options)
    assert method.name == name


def test_defaults_are_those_of_the_help() -> None:
    """Per checkpoint and from the first checkpoint; tf warm-up; 1-sqrt; inv-gamma 1 and 2/3; weights normalized."""
    assert meant(decay=0.9) == [Method(name="ema", decay=Decay.of(0.9), per="checkpoint", init="first")]
    assert meant(method="ema-hold", decay=0.9) == [
        Method(name="ema-hold", decay=Decay.of(0.9), per="step", init="first")
    ]
    assert meant(method="ema-warmup", decay=0.9)[0].warmup == "tf"
    (inverse,) = meant(method="ema-warmup", decay=0.9, power=0.75)
    assert (inverse.warmup, inverse.inv_gamma, inverse.power) == ("inv-gamma", 1, 0.75)
    assert meant(method="ema-warmup", decay=0.9, inv_gamma=2)[0].power == DEFAULT_POWER
    assert meant(method="lr-decay")[0].shape == "1-sqrt"
    assert meant(weights=(1, 2))[0].normalize is True


def test_several_methods_and_decays_are_all_combinations() -> None:
    """Each method with a decay is made with each of them; the others once."""
    labels = [method.label for method in meant(method=["ema", "uniform", "ema-hold"], decay=[0.5, 0.9])]
    assert labels == ["ema 0.5", "ema 0.9", "uniform", "ema-hold 0.5", "ema-hold 0.9"]


def test_labels_distinguish_methods() -> None:
    """They are short, and never show a decay as 1."""
    made = meant(method=["ema", "power", "lr-decay"], half_life=[1000], sigma_rel=[0.05, 0.1], shape="linear")
    assert [method.label for method in made] == ["ema H=1000", "power 0.05", "power 0.1", "lr-decay linear"]
    assert decay_text(Decay.of_complement(1e-15)) == "1-1e-15"
    assert decay_text(Decay.of(0.999)) == "0.999"


@given(st.floats(1e-100, 1))
@settings(deadline=None)
def test_a_decay_keeps_what_one_minus_it_says(complement: float) -> None:
    """1 - d is stored exactly as given, and lambda = -ln d is exact from either side."""
    decay = Decay.of_complement(complement)
    assert decay.complement == complement
    if complement < 1:
        assert decay.rate == pytest.approx(-math.log1p(-complement), rel=1e-13)


@given(half_life=st.floats(1e-2, 1e15))
@settings(deadline=None)
def test_a_half_life_halves(half_life: float) -> None:
    """d^H = 1/2, even if d itself is rounded to 1."""
    decay = Decay.of_half_life(half_life)
    assert 0 <= decay.value <= 1
    assert half_life * decay.rate == pytest.approx(math.log(2), rel=1e-12)


def test_one_decay_is_one_method_however_it_is_given() -> None:
    """A decay, its complement and its half-life are the same; other parameters are not."""
    (decay,), (complement,), (half_life,) = meant(decay=0.5), meant(one_minus_decay=0.5), meant(half_life=1)
    assert decay.same_as(complement)
    assert decay.same_as(half_life)
    assert not decay.same_as(meant(decay=0.51)[0])
    assert not decay.same_as(meant(decay=0.5, per="step")[0])
    assert not decay.same_as(meant(method="uniform")[0])


def test_weights_may_follow_the_paths() -> None:
    """``PATH:WEIGHT``; a path may contain colons itself."""
    assert split_weights(["a.pt:1", "b:c.pt:2.5", "d:1e-3"]) == (("a.pt", "b:c.pt", "d"), (1.0, 2.5, 0.001))
    options = make_options(["a.pt:1", "b.pt:3"], method="manual")
    assert (options.paths, options.weights) == (("a.pt", "b.pt"), (1.0, 3.0))
    for wrong in ("a.pt", "a.pt:", ":1", "a.pt:x", "1"):
        with pytest.raises(UsageError, match="has no weight"):
            split_weights([wrong])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"half_life": [1, 2], "output": "n_{decay}.safetensors"}, ["n_0.5", "n_0.707106781187"]),
        ({"one_minus_decay": 1e-15, "output": "n_{decay}.safetensors"}, ["n_1-1e-15"]),
        ({"method": ["ema", "uniform"], "decay": [0.5, 0.9], "output": "n_{label}.safetensors"},
         ["n_ema_0.5", "n_ema_0.9", "n_uniform"]),
        ({"decay": -0.0, "output": "n_{decay}.safetensors"}, ["n_0"]),
    ],
)  # fmt: skip
def test_output_names_distinguish_averages(options: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    """Any field that has a value works, whichever way the decay was given."""
    paths = write_series(tmp_path, random_states(3))
    made = ema_cli.plan(paths, **options)
    assert [output.path.stem for output in made.outputs] == names


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"decay": 0.9, "output": "n_{half_life}.safetensors"}, r"ema 0.9 has no \{half_life\}", "{label}"),
        ({"method": ["ema", "uniform"], "decay": 0.9, "output": "n_{decay}.safetensors"}, "uniform has no", "{label}"),
        ({"method": ["ema", "uniform"], "decay": [0.8, 0.9], "output": "n.safetensors"}, "averages need", "n_{label}"),
        ({"half_life": [1, 2], "output": "n.safetensors"}, "several averages need", "n_{half_life}"),
        ({"method": ["ema", "ema-hold"], "decay": 0.9, "output": "n_{decay}.safetensors"}, "averages need", "{method}"),
    ],
)
def test_names_that_do_not_are_refused_before_anything_is_read(
    options: dict[str, Any], message: str, hint: str
) -> None:
    """The hint names a field that has a value."""
    with pytest.raises(UsageError, match=message) as refused:
        make_options("missing", **options)
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"weights": (1e308, 1e308)},
        {"weights": (1e-200, 1)},
        {"sigma_rel": 1e-200},
        {"one_minus_decay": 1e-170},
        {"method": "ema-warmup", "decay": 0.9, "power": 1e300},
    ],
)
def test_numbers_beyond_all_sense_are_refused(options: dict[str, Any]) -> None:
    """A value that would overflow is a usage error."""
    with pytest.raises(UsageError):
        make_options("run", **options)


def test_other_options_select_no_weights() -> None:
    """Options of other kinds do not select weights."""
    assert not make_options("run", dtype="float64", clock="tokens").chooses_weights
    for said in ({"decay": 0.5}, {"method": "uniform"}, {"init": "first", "decay": 0.1}, {"weights": (1.0,)}):
        assert make_options("run", **said).chooses_weights
    assert WeightOptions().lacks_decay
    assert not WeightOptions(method=("uniform",)).lacks_decay


def test_plain_values_hold_every_parameter() -> None:
    """The method in reports and metadata is flat, and has d, 1 - d and the half-life."""
    plain = meant(half_life=1)[0].plain()
    assert plain["decay"] == plain["one_minus_decay"] == pytest.approx(0.5)
    assert plain["half_life"] == 1
    assert plain["sigma_rel"] is None


@pytest.mark.parametrize("name", SPECS)
def test_the_help_defines_each_method(name: str) -> None:
    """One table: the definition, whether steps are used, the name in the literature."""
    spec = SPECS[name]  # type: ignore[index]
    shown = CliRunner().invoke(app, ["average", "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"}).output
    flat = re.sub(r"\s+", " ", shown)
    assert re.search(rf"{re.escape(name)} +{re.escape(spec.definition[:40])}", flat)
    assert spec.literature in flat


@pytest.mark.parametrize("command", [["average", "--help"], ["plan", "--help"]])
def test_every_help_of_the_main_job_has_the_table(command: list[str]) -> None:
    """The methods are explained wherever the options are explained."""
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "120", "NO_COLOR": "1"}).output
    assert shown.count("Methods") == 1
    assert "uniform-time" in shown
