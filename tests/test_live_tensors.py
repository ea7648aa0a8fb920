"""Which tensors the live EMA averages, and in which type: late, frozen, tied, half, complex, buffers, and odd ones."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ema_cli import EMA
from ema_cli.errors import UsageError
from tests.helpers.live_training import Watch, Weights, assert_close, assert_equal, folded, move_weights, weights_of


def train(model: nn.Module, ema: EMA, seeds: range) -> list[Weights]:
    """Update an EMA after every step, and return the weights of each."""
    history = []
    for seed in seeds:
        move_weights(model, seed)
        ema.update()
        history.append(weights_of(model))
    return history


def alone(history: list[Weights], name: str) -> list[Weights]:
    """Return one tensor of a history, from where it appears."""
    return [{name: weights[name]} for weights in history if name in weights]


def test_parameters_that_come_and_go() -> None:
    """One that appears later begins with its own first weights; one that disappears is dropped; the others go on."""
    model = nn.ModuleDict({"old": nn.Linear(2, 2), "stays": nn.Linear(2, 1)})
    ema = EMA(model, 0.8)
    history = train(model, ema, range(4))
    model["new"] = nn.Linear(2, 3)
    history += train(model, ema, range(4, 7))
    del model["old"]
    with ema.applied():  # the model no longer has the old ones
        pass
    assert ema.average_model().get_parameter("new.bias").shape == (3,)
    history += train(model, ema, range(7, 9))
    assert set(ema.shadow) == {"stays.weight", "stays.bias", "new.weight", "new.bias"}
    for name, average in ema.shadow.items():
        assert_close({name: average}, folded(alone(history, name), 0.8), 1e-6)
    del model["new"]
    train(model, ema, range(9, 11))
    assert set(ema.shadow) == {"stays.weight", "stays.bias"}


def test_a_module_that_comes_back_begins_anew() -> None:
    """What was dropped is forgotten."""
    model = nn.ModuleDict({"part": nn.Linear(2, 2), "stays": nn.Linear(2, 1)})
    ema = EMA(model, 0.8)
    train(model, ema, range(3))
    part = model["part"]
    del model["part"]
    train(model, ema, range(3, 5))
    model["part"] = part
    history = train(model, ema, range(5, 8))
    assert_close({"part.bias": ema.shadow["part.bias"]}, folded(alone(history, "part.bias"), 0.8), 1e-6)


def test_frozen_and_unfrozen_parameters() -> None:
    """A parameter that is frozen later continues to be averaged; one that is unfrozen later joins; others never do."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    model[2].requires_grad_(False)
    ema = EMA(model, 0.8)
    history = train(model, ema, range(3))
    assert set(ema.shadow) == {"0.weight", "0.bias"}
    model[0].requires_grad_(False)
    model[1].requires_grad_(True)
    later = train(model, ema, range(3, 7))
    assert_close({"0.bias": ema.shadow["0.bias"]}, folded(alone(history + later, "0.bias"), 0.8), 1e-6)
    assert_close({"1.bias": ema.shadow["1.bias"]}, folded(alone(later, "1.bias"), 0.8), 1e-6)
    own = weights_of(model)
    with ema.applied():
        assert torch.equal(model.get_parameter("2.weight"), own["2.weight"])
        assert not torch.equal(model.get_parameter("0.weight"), own["0.weight"])
    ema.register()
    assert set(ema.shadow) == {"1.weight", "1.bias"}


def test_a_replaced_parameter() -> None:
    """A new object of the same shape continues the average, whatever its type; of another shape it is refused."""
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.8)
    history = train(model, ema, range(3))
    model.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    history += train(model, ema, range(3, 5))
    assert_close(ema.shadow, folded(history, 0.8), 1e-6)
    assert ema.shadow["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, 4), "[2, 4] float32 and [2, 3] float32"),
        (torch.ones(1, 3), "[1, 3] float32 and [2, 3] float32"),
        (torch.ones(2, 3, dtype=torch.complex64), "[2, 3] complex64 and [2, 3] float32"),
        (torch.ones(2, 3, device="meta"), "no values"),
    ],
)
def test_a_parameter_that_no_longer_fits(tensor: torch.Tensor, words: str) -> None:
    """Update, apply and copy name the tensor and change nothing: no step, no average, no weight."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2))
    ema = EMA(model, 0.8)
    train(model, ema, range(3))
    model[1].weight = nn.Parameter(tensor)
    own, averages, step = weights_of(model), copy.deepcopy(ema.shadow), ema.step
    for call in (ema.update, ema.apply_shadow, ema.average_model):
        with pytest.raises(UsageError, match=r'"1\.weight"') as caught:
            call()
        assert words in str(caught.value)
    assert ema.step == step
    assert_equal(ema.shadow, averages)
    assert_equal({"0.weight": model.get_parameter("0.weight")}, {"0.weight": own["0.weight"]})
    model[1] = nn.Linear(4, 2)
    ema.register()
    ema.update()


def test_weights_that_change_their_form_while_an_average_is_applied() -> None:
    """What can be restored is; the error names the others, and the EMA is usable again."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    ema = EMA(model, 0.8)
    own = train(model, ema, range(3))[-1]
    ema.apply_shadow()
    model[1] = nn.Linear(2, 5)
    del model[2]
    with pytest.raises(UsageError, match="removed or resized") as caught:
        ema.restore()
    assert all(f'"{name}"' in str(caught.value) for name in ("1.weight", "1.bias", "2.weight", "2.bias"))
    assert torch.equal(model.get_parameter("0.weight"), own["0.weight"])
    ema.register()


def test_tied_parameters_are_averaged_once() -> None:
    """Under their first name; they stay tied while applied and in the copy."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    ema = EMA(model, 0.8)
    history = train(model, ema, range(4))
    assert set(ema.shadow) == {"0.weight", "0.bias", "1.bias"}
    assert_close(ema.shadow, folded(history, 0.8), 1e-6)
    copied = ema.average_model()
    assert copied.get_parameter("0.weight") is copied.get_parameter("1.weight")
    with ema.applied():
        assert model[1].weight is model[0].weight
        assert torch.equal(model.get_parameter("1.weight"), ema.shadow["0.weight"])


class Buffered(nn.Module):
    """A model with BatchNorm, a buffer of numbers and one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move all buffers."""
        self.get_buffer("scale").mul_(1.5)
        self.get_buffer("count").add_(1)
        normalized: torch.Tensor = self.norm(self.first(inputs))
        return normalized


def test_batchnorm_statistics_are_averaged_by_default() -> None:
    """They belong to the average, unlike other buffers; without weights to train there is nothing to average."""
    model = Buffered()
    ema = EMA(model, 0.8)
    ema.register()
    buffers = {name for name, _ in model.named_buffers()}
    assert ema.shadow.keys() & buffers == {"norm.running_mean", "norm.running_var"}
    with pytest.raises(UsageError, match="no parameter that requires a gradient"):
        EMA(model.requires_grad_(requires_grad=False), 0.8).register()


@pytest.mark.parametrize("rules", [("copy", "copy"), ("average", "copy"), ("copy", "average"), ("average", "average")])
def test_buffers(rules: tuple[str, str]) -> None:
    """Each rule averages its buffers as torch's class does, and leaves the others, and all integers, to the model."""
    torch.manual_seed(0)
    model, decay = Buffered(), 0.8
    ema = EMA(model, decay, buffers=rules[0], batchnorm=rules[1])  # type: ignore[arg-type]
    judge = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(5):
        model(torch.randn(8, 2))
        ema.update()
        judge.update_parameters(model)
    expected = dict(judge.module.named_buffers())
    ruled = {"scale": rules[0], "norm.running_mean": rules[1], "norm.running_var": rules[1]}
    averaged = {name for name, rule in ruled.items() if rule == "average"}
    assert set(ema.shadow) == {name for name, _ in model.named_parameters()} | averaged
    for found in (ema.average_model(), model):
        with ema.applied():
            for name, buffer in found.named_buffers():
                judged = expected[name] if name in averaged else model.get_buffer(name)
                torch.testing.assert_close(buffer, judged, rtol=1e-6, atol=1e-6)
    assert model.get_buffer("count").tolist() == [5, 5]


@pytest.mark.parametrize(("half", "judge"), [(torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16)])
def test_half_precision_models(half: torch.dtype, judge: Any) -> None:
    """Averages are float32, follow steps that the half type would lose, and are applied rounded to nearest."""
    model = nn.Linear(40, 30).to(half)
    ema = EMA(model, 0.999)
    history = train(model, ema, range(20))
    assert all(average.dtype == torch.float32 for average in ema.shadow.values())
    assert_close(ema.shadow, folded(history, 0.999), 1e-6)
    with ema.applied():
        for name, parameter in model.named_parameters():
            rounded = ema.shadow[name].numpy().astype(judge)
            assert parameter.dtype == half
            assert parameter.detach().view(torch.int16).numpy().tobytes() == rounded.tobytes()
    assert_equal(weights_of(model), history[-1])


def test_averages_in_64_bits() -> None:
    """``dtype=torch.float64`` holds steps that float32 loses: 1 - d of 1e-9 still moves the average."""
    model = nn.Linear(3, 2)
    ema = EMA(model, one_minus_decay=1e-9, dtype=torch.float64)
    ema.register()
    first = weights_of(model)
    move_weights(model, 0)
    ema.update()
    moved = {name: tensor.double() for name, tensor in weights_of(model).items()}
    expected = {name: tensor + 1e-9 * (moved[name] - tensor) for name, tensor in folded([first], 0.5).items()}
    assert_close(ema.shadow, expected, 1e-15)
    assert not torch.equal(ema.shadow["weight"], first["weight"].double())


def test_all_types_in_one_model() -> None:
    """Half, single, double and complex parameters, a single number and an empty tensor, each in its own type."""
    kinds = {
        "short": torch.float16,
        "brain": torch.bfloat16,
        "single": torch.float32,
        "twice": torch.float64,
        "pair": torch.complex64,
        "wide": torch.complex128,
    }
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(2, 3, dtype=dtype)) for name, dtype in kinds.items()})
    model["number"] = nn.Parameter(torch.tensor(2.0))
    model["empty"] = nn.Parameter(torch.zeros(0, 3))
    ema, wide = EMA(model, (0.8, 0.9)), EMA(model, (0.8, 0.9), dtype=torch.float64)
    history = []
    for seed in range(4):
        move_weights(model, seed)
        ema.update()
        wide.update()
        history.append(weights_of(model))
    for number, decay in enumerate((0.8, 0.9)):
        assert_close(ema.average_of(number), folded(history, decay), 1e-6)
        assert_close(wide.average_of(number), folded(history, decay), 1e-14)
    types = {name: average.dtype for name, average in ema.shadow.items()}
    assert types == kinds | dict.fromkeys(("short", "brain", "single", "number", "empty"), torch.float32)
    widened = {name: torch.complex128 if kind.is_complex else torch.float64 for name, kind in types.items()}
    assert {name: average.dtype for name, average in wide.shadow.items()} == widened
    with ema.applied():
        assert {name: one.dtype for name, one in model.items()} == types | {
            "short": torch.float16,
            "brain": torch.bfloat16,
        }
    assert_equal(weights_of(model), history[-1])


def test_what_torch_is_asked_to_do() -> None:
    """A parameter is converted once for all averages, and each call averages tensors of one type."""
    model = nn.ModuleList([nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()])
    ema = EMA(model, (0.5, 0.9, 0.99))
    train(model, ema, range(2))
    calls = Counter[str]()

    def count(name: str, arguments: tuple[Any, ...]) -> None:
        calls[name] += 1
        if name == "_foreach_lerp_":
            assert len({one.dtype for group in arguments[:2] for one in group}) == 1

    with Watch(count):
        ema.update()
    assert calls == {"_to_copy": 4, "_foreach_lerp_": 3}


def test_large_tensors_are_converted_in_pieces() -> None:
    """A half-precision model is converted a few megabytes at a time, whatever the layout; the result is the same."""
    torch.manual_seed(0)
    shapes = [(700_000,), (1000, 3_000), (3_000, 1000), (1, 1_200_000), ()]
    model = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=torch.bfloat16)) for shape in shapes)
    model[2] = nn.Parameter(model[2].detach().t())
    ema = EMA(model, (0.5, 0.9))
    history = train(model, ema, range(2))
    sizes: list[int] = []
    pending: list[int] = []

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "_to_copy":
            sizes.append(arguments[0].numel())
            pending.append(sizes[-1])
        elif name == "_foreach_lerp_":
            assert sum(pending) <= 2_300_000
            pending.clear()

    move_weights(model, 2)
    history.append(weights_of(model))
    with Watch(watch):
        ema.update()
    assert max(sizes) == 1_200_000  # a single row
    assert sorted(sizes)[-2] <= 1_050_000
    for number, decay in enumerate((0.5, 0.9)):
        assert_close(ema.average_of(number), folded(history, decay), 1e-6)


@pytest.mark.parametrize(
    "parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_modules(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    """The tensors behind a parametrization are averaged, as in torch's class."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrize(nn.Linear(3, 3)), nn.Linear(3, 1))
    ema = EMA(model, 0.8)
    judge = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for seed in range(4):
        move_weights(model, seed)
        ema.update()
        judge.update_parameters(model)
    inputs = torch.ones(2, 3)
    expected = judge.module.eval()(inputs)
    own = model.eval()(inputs)
    with ema.applied():
        torch.testing.assert_close(model(inputs), expected)
    assert torch.equal(model(inputs), own)
    torch.testing.assert_close(ema.average_model()(inputs), expected)


def test_a_sparse_parameter() -> None:
    """It is refused when it is first seen; what is averaged already is not folded."""
    model = nn.ModuleList([nn.Linear(2, 2)])
    ema = EMA(model, 0.5)
    ema.register()
    before = copy.deepcopy(ema.shadow)
    odd = nn.Module()
    odd.weight = nn.Parameter(torch.eye(3).to_sparse())
    model.append(odd)
    move_weights(nn.ModuleList([model[0]]), 0)
    with pytest.raises(UsageError, match=r'"1\.weight" is sparse'):
        ema.update()
    assert_equal(ema.shadow, before)


@pytest.mark.parametrize("model", [nn.LazyLinear(3), nn.Linear(3, 3, device="meta")], ids=["lazy", "meta"])
def test_parameters_without_values(model: nn.Module) -> None:
    """The error says what to do first; what was registered before stays."""
    whole = nn.ModuleList([nn.Linear(2, 2)])
    ema = EMA(whole, 0.5)
    ema.register()
    before = copy.deepcopy(ema.shadow)
    whole.append(model)
    for call in (ema.register, ema.update):
        with pytest.raises(UsageError, match=r'"1\.weight" has no values') as caught:
            call()
        assert "run one batch" in caught.value.hint
    assert_equal(ema.shadow, before)
    assert ema.step == 0


def test_a_lazy_model_after_its_first_batch() -> None:
    """It is averaged like any other."""
    model = nn.LazyLinear(3)
    model(torch.ones(1, 2))
    ema = EMA(model, 0.5)
    history = train(model, ema, range(3))
    assert_close(ema.shadow, folded(history, 0.5), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_type(dtype: torch.dtype) -> None:
    """After ``model.to(dtype)`` the averages go on in their own type."""
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.8)
    history = train(model, ema, range(2))
    model.to(dtype)
    history += train(model, ema, range(2, 4))
    assert all(average.dtype == torch.float32 for average in ema.shadow.values())
    assert_close(ema.shadow, folded(history, 0.8), 1e-6)
    with ema.applied():
        assert model.weight.dtype == dtype
    assert_equal(weights_of(model), history[-1])


def test_parameters_in_other_layouts() -> None:
    """Views, transposed and channels-last parameters keep their strides and are restored exactly."""
    flat = torch.randn(24)
    model = nn.ParameterList(
        [
            nn.Parameter(flat[:12].view(3, 4)),
            nn.Parameter(flat[12:].view(3, 4).t()),
            nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        ]
    )
    ema = EMA(model, 0.8)
    history = train(model, ema, range(3))
    assert_close(ema.shadow, folded(history, 0.8), 1e-6)
    strides = [parameter.stride() for parameter in model]
    with ema.applied():
        assert [parameter.stride() for parameter in model] == strides
    assert_equal(weights_of(model), history[-1])
