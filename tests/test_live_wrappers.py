"""The live EMA of wrapped models in one process: torch.compile, DataParallel, checkpointing, parametrizations, ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize

from ema_cli import EMA
from tests.helpers.live_nets import STEPS, UnevenNet, averaged, look, set_weights

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


def assert_average(ema: EMA, judge: nn.Module) -> None:
    """Compare every averaged parameter, under the name that it has without wrappers."""
    expected = {name: parameter for name, parameter in judge.named_parameters() if parameter.requires_grad}
    assert ema.shadow.keys() == expected.keys()
    for name, tensor in ema.shadow.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("made", ["before", "after", "in place", "a layer"])
def test_a_compiled_model_computes_with_the_average(made: str) -> None:
    """A compiled model uses the average and its own weights without being compiled again, whoever came first."""
    torch.compiler.reset()
    counter = CompileCounter()
    model = UnevenNet()
    ema = EMA(model, 0.5)
    running: Any = model
    if made == "in place":
        model.compile(backend=counter)
    elif made == "a layer":
        model.second = torch.compile(model.second, backend=counter)  # type: ignore[assignment]
    else:
        running = torch.compile(model, backend=counter)
    if made == "after":
        ema = EMA(running, 0.5)
    compilations = []
    for number, step in enumerate(STEPS, 1):
        running(torch.ones(6, 7)).sum().backward()
        set_weights(running, step)
        ema.update()
        with ema.applied():
            torch.testing.assert_close(look(running), look(averaged(STEPS[:number])))
        own = UnevenNet()
        set_weights(own, step)
        torch.testing.assert_close(look(running), look(own))
        compilations.append(counter.frame_count)
    assert_average(ema, averaged(STEPS))
    assert compilations[0] >= 1
    assert len(set(compilations)) == 1
    assert not isinstance(ema.average_model(), torch._dynamo.OptimizedModule)
    torch.testing.assert_close(look(ema.average_model()), look(averaged(STEPS)))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, checkpoint_wrapper, lambda model: nn.DataParallel(checkpoint_wrapper(model))],
    ids=["DataParallel", "checkpoint_wrapper", "both"],
)
def test_wrappers_do_not_change_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """The averages have the names of the model inside, and the copy is that model or loads its weights."""
    wrapped = wrap(UnevenNet())
    ema = EMA(wrapped, 0.5)
    for step in STEPS:
        set_weights(wrapped, step)
        ema.update()
    assert_average(ema, averaged(STEPS))
    with ema.applied():
        torch.testing.assert_close(look(wrapped), look(averaged(STEPS)))
    torch.testing.assert_close(look(ema.average_model()), look(averaged(STEPS)))


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized_weights(kind: Callable[[nn.Module], nn.Module]) -> None:
    """What is averaged are the parameters behind a weight, and the model computes the weight from their average."""
    model = nn.Sequential(kind(nn.Linear(7, 5)), nn.Linear(5, 1))
    ema = EMA(model, 0.5)
    expected: dict[str, torch.Tensor] = {}
    for step in STEPS:
        set_weights(model, step)
        ema.update()
        now = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        expected = {name: torch.lerp(expected.get(name, tensor), tensor, 0.5) for name, tensor in now.items()}
    assert ema.shadow.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ema.shadow.items())
    own = look(model)
    with ema.applied():
        seen = look(model)
        with parametrize.cached():
            assert torch.equal(look(model), seen)
    assert torch.equal(look(model), own)
    model.load_state_dict(expected, strict=False)
    torch.testing.assert_close(seen, look(model))
    torch.testing.assert_close(look(ema.average_model()), seen)


def test_tied_weights_stay_tied() -> None:
    """Tied parameters are averaged once and stay one tensor: applied, restored and in the copy."""
    model = UnevenNet()
    ema = EMA(model, 0.5)
    ema.register()
    assert "second.weight" in ema.shadow
    assert "third.weight" not in ema.shadow
    place = model.second.weight.data_ptr()
    with ema.applied():
        assert model.third.weight is model.second.weight
    assert model.third.weight is model.second.weight
    assert model.second.weight.data_ptr() == place
    copied = ema.average_model()
    assert isinstance(copied, UnevenNet)
    assert copied.third.weight is copied.second.weight
    assert copied.second.weight is not model.second.weight


def test_parameters_keep_their_places() -> None:
    """Applying and restoring write into the parameters, so optimizers and captured graphs keep what they hold."""
    model = UnevenNet()
    ema = EMA(model, 0.5)
    ema.register()
    places = {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()}
    with ema.applied():
        assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()} == places
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()} == places


def test_averages_on_another_device() -> None:
    """With ``device="cpu"`` the averages, applied weights and copies are where they belong; types stay the model's."""
    model = UnevenNet().to(torch.bfloat16)
    ema = EMA(model, 0.5, device="cpu")
    for step in STEPS:
        set_weights(model, step)
        ema.update()
    assert {(tensor.device.type, tensor.dtype) for tensor in ema.shadow.values()} == {("cpu", torch.float32)}
    with ema.applied():
        for name, tensor in ema.shadow.items():
            assert torch.equal(model.get_parameter(name), tensor.to(torch.bfloat16))
    assert {parameter.dtype for parameter in ema.average_model().parameters()} == {torch.bfloat16}
