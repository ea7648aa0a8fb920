"""The state of the live EMA: saved and continued, refused if it does not fit, copied and pickled."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.errors import UsageError
from tests.helpers.live_training import assert_equal, move_weights, weights_of

METHODS: list[dict[str, Any]] = [
    {"decay": 0.9},
    {"decay": (0.9, 0.99), "every": 3},
    {"half_life": 3, "init": "debias"},
    {"decay": 0.99, "method": "ema-warmup"},
    {"decay": 0.99, "warmup": "inv-gamma", "power": 0.75},
    {"method": "uniform", "dtype": torch.float64},
    {"sigma_rel": (0.05, 0.1), "buffers": "average", "batchnorm": "average"},
]


def made() -> nn.Sequential:
    """Return a model with a frozen layer, half-precision parameters, and BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 1))
    model[3].requires_grad_(False)
    return model


def train(model: nn.Module, ema: EMA, seeds: range) -> None:
    """Update an EMA after every step."""
    for seed in seeds:
        move_weights(model, seed)
        ema.update()


def saved(**given: Any) -> dict[str, Any]:
    """Return the state of an EMA after three steps."""
    model = made()
    ema = EMA(model, **(given or {"decay": 0.9}))
    train(model, ema, range(3))
    return ema.state_dict()


@pytest.mark.parametrize("given", METHODS, ids=str)
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_state_continues_the_average_exactly(given: dict[str, Any], before: int, tmp_path: Path) -> None:
    """Stored by ``torch.save``, loaded with ``weights_only``, it goes on as if nothing had happened, late ones too."""
    model = made()
    ema = EMA(model, **given)
    train(model, ema, range(before))
    model[3].requires_grad_(True)
    train(model, ema, range(before, before + 4))
    torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, tmp_path / "run.pt")
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)

    again = made()
    again.load_state_dict(loaded["model"])
    again[3].requires_grad_(True)
    resumed = EMA(again, **given)
    resumed.load_state_dict(loaded["ema"])
    assert resumed.step == ema.step
    for model_, ema_ in ((model, ema), (again, resumed)):
        train(model_, ema_, range(20, 25))
    for number in range(len(ema.methods)):
        assert_equal(resumed.average_of(number), ema.average_of(number))


def test_a_state_is_copied() -> None:
    """Going on does not change the tensors that were loaded, and a second EMA can load them too."""
    state = saved()
    before = copy.deepcopy(state["averages"][0])
    for _ in range(2):
        model = made()
        ema = EMA(model, 0.9)
        ema.load_state_dict(state)
        train(model, ema, range(3))
    assert_equal(state["averages"][0], before)


def test_an_empty_state() -> None:
    """An EMA that has seen nothing can be stored and loaded; the step counts."""
    model = made()
    ema = EMA(model, 0.9, every=5)
    train(model, ema, range(3))
    other = EMA(made(), 0.9, every=5)
    other.load_state_dict(pickle.loads(pickle.dumps(ema.state_dict())))
    assert other.step == 3
    with pytest.raises(UsageError, match="there is no average yet"):
        other.apply_shadow()


def test_a_state_takes_the_type_that_is_asked_for() -> None:
    """``dtype`` of the EMA that loads decides; without it the type in the state, and never a 16-bit one."""
    state = saved()
    ema = EMA(made(), 0.9, dtype=torch.float64)
    ema.load_state_dict(state)
    assert {average.dtype for average in ema.shadow.values()} == {torch.float64}
    wide = EMA(made(), 0.9)
    wide.load_state_dict(ema.state_dict())
    assert {average.dtype for average in wide.shadow.values()} == {torch.float64}
    state["averages"] = [{name: tensor.bfloat16() for name, tensor in state["averages"][0].items()}]
    wide.load_state_dict(state)
    assert {average.dtype for average in wide.shadow.values()} == {torch.float32}


def test_a_decay_written_another_way() -> None:
    """0.999, 1 - d = 0.001 and the half-life of it are one method."""
    state = saved(one_minus_decay=0.1)
    for given in ({"decay": 0.9}, {"half_life": 6.578813478960585}):
        EMA(made(), **given).load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"decay": 0.99}, r"made with ema decay=0\.9 .*, and this EMA has ema decay=0\.99"),
        ({"decay": (0.9, 0.99)}, "this EMA has ema decay=0.9 .* and ema decay=0.99"),
        ({"decay": 0.9, "init": "debias"}, "init=first.* init=debias"),
        ({"method": "uniform"}, "this EMA has uniform"),
        ({"sigma_rel": 0.1}, "this EMA has power sigma_rel=0.1"),
        ({"decay": 0.9, "method": "ema-warmup"}, "this EMA has ema-warmup .*warmup=tf"),
    ],
)
def test_a_state_of_another_method(given: dict[str, Any], words: str) -> None:
    """The error shows both."""
    with pytest.raises(UsageError, match=words):
        EMA(made(), **given).load_state_dict(saved())


def without(model: nn.Sequential) -> nn.Module:
    """Return a model that lacks layers."""
    return model[:2]


def wider(model: nn.Sequential) -> nn.Module:
    """Return a model with another shape."""
    model[0] = nn.Linear(5, 4)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, 'the model has no "2.weight", "2.bias" to average'),
        (wider, 'have "0.weight" in two shapes on this process: [4, 5] float32 and [4, 3] float32'),
    ],
)
def test_a_state_of_another_model(change: Callable[[nn.Sequential], nn.Module], words: str) -> None:
    """The error names the tensors; the EMA is as it was."""
    model = change(made())
    ema = EMA(model, 0.9)
    train(model, ema, range(2))
    before = copy.deepcopy(ema.shadow)
    with pytest.raises(UsageError, match=re.escape(words)):
        ema.load_state_dict(saved())
    assert_equal(ema.shadow, before)
    assert ema.step == 2


def test_a_state_with_buffers_that_are_not_averaged() -> None:
    """It was made under other rules."""
    with pytest.raises(UsageError, match=r'the model has no "1\.running_mean", .*') as caught:
        EMA(made(), 0.9, batchnorm="copy").load_state_dict(saved(decay=0.9))
    assert "buffers" in caught.value.hint


def changed(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a function that changes an entry of a state."""

    def change(state: dict[str, Any]) -> Any:
        state = {**state, "cohorts": [dict(one) for one in state["cohorts"]]}
        entry: Any = state
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = to
        return state

    return change


def missing(key: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function that removes an entry of a state."""
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda _: [],
        lambda _: {},
        lambda state: state["averages"][0],
        *(missing(key) for key in ("methods", "step", "cohorts", "averages")),
        changed("methods", to=None),
        changed("methods", to=["ema"]),
        changed("step", to="3"),
        changed("step", to=-1),
        changed("step", to=2),
        changed("averages", to=[]),
        changed("averages", to=[None]),
        changed("averages", to=[{}]),
        changed("averages", 0, "0.weight", to=[1.0]),
        changed("averages", 0, "0.weight", to=None),
        changed("cohorts", to=3),
        changed("cohorts", to=[3]),
        changed("cohorts", to=[{}]),
        changed("cohorts", 0, "names", to=["0.weight", 3]),
        changed("cohorts", 0, "names", to="0.weight"),
        changed("cohorts", 0, "names", to=[]),
        changed("cohorts", 1, "names", to=["0.weight"]),
        changed("cohorts", 0, "first_step", to=4),
        changed("cohorts", 0, "first_step", to=-1),
        changed("cohorts", 0, "last_step", to=None),
        changed("cohorts", 0, "updates", to=0),
        changed("cohorts", 0, "updates", to=4),
        changed("cohorts", 0, "updates", to=1.5),
    ],
)
def test_what_is_no_state(change: Callable[[dict[str, Any]], Any]) -> None:
    """Anything else is refused with a sentence, and nothing is loaded of it."""
    state = saved()
    late = {**state["cohorts"][0], "names": ("1.weight", "1.bias")}
    early = {**state["cohorts"][0], "names": ("0.weight", "0.bias")}
    state["cohorts"] = (early, late)
    EMA(made(), 0.9).load_state_dict(state)
    ema = EMA(made(), 0.9)
    with pytest.raises(UsageError, match="state") as caught:
        ema.load_state_dict(change(state))
    assert "\n" not in str(caught.value)
    assert (ema.step, ema.state_dict()["cohorts"]) == (0, ())


def test_loading_while_an_average_is_applied() -> None:
    """It is refused: the average in the model would not be that of the state."""
    ema = EMA(made(), 0.9)
    ema.register()
    with ema.applied(), pytest.raises(UsageError, match="while an average is applied"):
        ema.load_state_dict(saved())


def test_registering_at_a_later_step() -> None:
    """``register(step=)`` sets the position in training, which the power profile and ``every`` count from."""
    model = made()
    ema = EMA(model, 0.9, every=4)
    ema.register(step=10)
    train(model, ema, range(2))
    assert ema.step == 12
    (first, *_) = ema.state_dict()["cohorts"]
    assert (first["first_step"], first["last_step"], first["updates"]) == (10, 12, 2)
    for step in (-1, 1.5, "1"):
        with pytest.raises(UsageError, match="step="):
            ema.register(step)  # type: ignore[arg-type]
    assert ema.step == 12


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))])
@pytest.mark.parametrize("applied", [False, True])
def test_a_duplicate_is_independent(duplicate: Callable[[EMA], EMA], *, applied: bool) -> None:
    """A deep copy or a pickled EMA has a model of its own, and what was applied can be restored in it."""
    model = made()
    ema = EMA(model, 0.9)
    train(model, ema, range(3))
    own = weights_of(model)
    if applied:
        ema.apply_shadow()
    other = duplicate(ema)
    assert other.model is not model
    if applied:
        ema.restore()
        other.restore()
    assert_equal(weights_of(other.model), own)
    train(other.model, other, range(3, 5))
    assert_equal(weights_of(model), own)
    assert ema.step == 3
    train(model, ema, range(3, 5))
    assert_equal(ema.shadow, other.shadow)


def test_moving_the_averages() -> None:
    """``to`` returns the EMA, and changes no value; where there is no such device it changes nothing."""
    model = made()
    ema = EMA(model, 0.9, device="cpu")
    train(model, ema, range(2))
    before = copy.deepcopy(ema.shadow)
    assert ema.to("cpu").to(torch.device("cpu")) is ema
    for device in ("meta", "nowhere", None, 1.5, *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(UsageError, match="device"):
            ema.to(device)
    assert_equal(ema.shadow, before)
