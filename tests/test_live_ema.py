"""The live EMA class: the calls of the usual shadow class, an average in place of the weights, and exact restoring."""

from __future__ import annotations

import copy
import pickle
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ema_cli import EMA, EmaAvgError
from ema_cli.cli import topics
from ema_cli.errors import UsageError
from tests.helpers.live_training import (
    Watch,
    Weights,
    assert_close,
    assert_equal,
    folded,
    move_weights,
    weights_of,
)

USUAL_CALLS = """
ema = EMA(model, 0.999)
ema.register()

def train():
    optimizer.step()
    ema.update()

def evaluate():
    ema.apply_shadow()
    seen.append(weights_of(model))
    ema.restore()
"""
"""How the shadow class that people write by hand is used."""


def made(
    decay: float | tuple[float, ...] = 0.5, steps: int = 5, **options: Any
) -> tuple[nn.Sequential, EMA, list[Weights]]:
    """Return a model after some steps, its EMA, and the weights of every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ema = EMA(model, decay, **options)
    history = []
    for seed in range(steps):
        move_weights(model, seed)
        ema.update()
        history.append(weights_of(model))
    return model, ema, history


def test_the_usual_calls_run_unchanged() -> None:
    """They compute d E + (1 - d) theta over the parameters that are trained, and put the model's own weights back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = torch.randn(32, 5), torch.randn(32, 1)
    names: dict[str, Any] = {"EMA": EMA, "model": model, "optimizer": optimizer, "seen": [], "weights_of": weights_of}
    exec(USUAL_CALLS, names)
    history = [weights_of(model)]
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        names["train"]()
        history.append(weights_of(model))
        names["evaluate"]()
        assert_equal(weights_of(model), history[-1])
        assert_close(names["seen"][-1], folded(history, 0.999), 1e-6)


def test_the_loop_of_the_help_topic() -> None:
    """It runs as written, with anything for the names that it leaves to the reader."""
    block = re.search(r"## During training.*?```python\n(.*?)```", topics.topic_text("live-ema"), re.DOTALL)
    assert block
    model = nn.Linear(2, 1)
    seen: list[Weights] = []
    names: dict[str, Any] = {
        "model": model,
        "loader": [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(10)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_of": nn.functional.mse_loss,
        "evaluate": lambda applied: seen.append(weights_of(applied)),
    }
    exec(block[1], names)
    assert names["ema"].step == 10
    assert_equal(seen[0], names["ema"].shadow)
    assert not torch.equal(seen[0]["weight"], model.weight)


def test_restoring_is_exact_for_any_bits() -> None:
    """Not a number with a payload, both zeros, the smallest and infinite numbers come back with their bytes."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.view(torch.int32).copy_(
            torch.tensor([[0x7FC12345, -0x80000000, 1, 0x7F800000], [0x7FA00001, 0, -0x7FFFFFFF, 0x3F800001]])
        )
    before = weights_of(model)
    ema = EMA(model, 0.5)
    ema.register()
    with ema.applied():
        move_weights(model, 0)
    assert_equal(weights_of(model), before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_own_weights_return_after_an_error(error: type[BaseException]) -> None:
    """An error or an interrupt inside the block leaves the model's own weights, and the EMA ready for more."""
    model, ema, history = made()
    with pytest.raises(error), ema.applied() as applied:  # noqa: PT012
        assert applied is model
        assert_close(weights_of(model), folded(history, 0.5), 1e-6)
        raise error
    assert_equal(weights_of(model), history[-1])
    ema.update()


@pytest.mark.parametrize("enter", [lambda ema: ema.apply_shadow(), lambda ema: ema.applied().__enter__()])
def test_nothing_is_half_applied(enter: Callable[[EMA], object]) -> None:
    """An interrupt after some tensors were overwritten undoes these; the next call works."""
    model, ema, history = made()
    pending = [True]

    def interrupt(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "_foreach_copy_" and pending:
            pending.clear()
            arguments[0][0].copy_(arguments[1][0])
            assert not torch.equal(model.get_parameter("0.weight"), history[-1]["0.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Watch(interrupt):
        enter(ema)
    assert_equal(weights_of(model), history[-1])
    with pytest.raises(UsageError, match="no average is applied"):
        ema.restore()
    with ema.applied():
        assert_close(weights_of(model), folded(history, 0.5), 1e-6)


def test_an_interrupted_restore_can_be_repeated() -> None:
    """The copies are kept until all of them are back."""
    model, ema, history = made()
    ema.apply_shadow()

    def interrupt(name: str, _: tuple[Any, ...]) -> None:
        if name == "_foreach_copy_":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Watch(interrupt):
        ema.restore()
    ema.restore()
    assert_equal(weights_of(model), history[-1])


def test_ctrl_c_while_the_weights_return() -> None:
    """It acts when all of them are back, and the next call works."""
    model, ema, history = made()
    copied: list[str] = []

    def interrupt(name: str, _: tuple[Any, ...]) -> None:
        copied.extend([name] if name == "_foreach_copy_" else [])
        if name == "_foreach_copy_" and len(copied) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Watch(interrupt), ema.applied():
        assert len(copied) == 1
    assert len(copied) == 2
    assert_equal(weights_of(model), history[-1])
    ema.update()


@pytest.mark.parametrize("call", ["update", "register", "apply_shadow"])
def test_a_second_ema_of_the_model_waits(call: str) -> None:
    """It neither averages an average, nor takes one for the model's own weights."""
    model, first, history = made()
    second = EMA(nn.DataParallel(model), 0.9)
    second.register()
    before = copy.deepcopy(second.shadow)
    with first.applied(), pytest.raises(UsageError, match=rf"{call}\(\) while an average is applied"):
        getattr(second, call)()
    assert_equal(second.shadow, before)
    assert_equal(weights_of(model), history[-1])
    getattr(second, call)()


def test_a_lost_ema_blocks_nothing() -> None:
    """An EMA that is gone while its average is applied leaves that as the model's weights."""
    model, ema, _ = made()
    ema.apply_shadow()
    del ema
    EMA(model, 0.5).register()


def test_what_is_read_and_cannot_be_set() -> None:
    """Values that would have no effect, or let time run backwards, cannot be set by mistake."""
    _, ema, _ = made((0.9, 0.99))
    assert (ema.decay, ema.step) == (0.9, 5)
    assert EMA(nn.Linear(1, 1), method="uniform").decay is None
    for name in ("decay", "step", "shadow"):
        with pytest.raises(AttributeError, match=name):
            setattr(ema, name, 0)


def test_the_block_may_be_left_early_by_hand() -> None:
    """``restore`` inside the block is enough; a block inside a block is refused, and the outer one stays."""
    model, ema, history = made()
    with ema.applied():
        with pytest.raises(UsageError, match=r"applied\(\) while an average is applied"), ema.applied():
            pass
        assert_close(weights_of(model), folded(history, 0.5), 1e-6)
        ema.restore()
        assert_equal(weights_of(model), history[-1])


def test_the_optimizer_keeps_its_parameters() -> None:
    """The model has the same parameters in the same places while an average is applied, and the same training after."""
    plain, model = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    ema = EMA(model, 0.5)
    inputs = torch.randn(8, 3)
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.1) for one in (plain, model)]
    for _ in range(3):
        for one, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            one(inputs).square().mean().backward()
            optimizer.step()
        ema.update()
        before = [(id(one), one.data_ptr()) for one in model.parameters()]
        with ema.applied():
            model(inputs)
            assert [(id(one), one.data_ptr()) for one in model.parameters()] == before
    assert_equal(weights_of(model), weights_of(plain))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_call_works_in_every_mode_of_gradients(mode: Callable[[], Any]) -> None:
    """Averages begun, applied or copied in inference mode can be trained on, updated and restored outside."""
    model, _, _ = made()
    ema = EMA(model, 0.5)
    with mode():
        ema.register()
        copied = ema.average_model()
        ema.apply_shadow()
        model(torch.ones(1, 3))
    ema.restore()
    for one in (model, copied):
        one(torch.ones(1, 3)).sum().backward()
    move_weights(model, 7)
    ema.update()
    assert not any(tensor.requires_grad for tensor in ema.shadow.values())
    assert all(parameter.requires_grad for parameter in copied.parameters())


def test_the_copy_is_a_model_of_its_own() -> None:
    """``average_model`` has the average, shares nothing with the model, and takes the rest of it as it is."""
    model, ema, history = made()
    model[1].register_buffer("scale", torch.tensor(3.0))
    model.eval()
    copied = ema.average_model()
    move_weights(model, 99)
    ema.update()
    assert_close(weights_of(copied), folded(history, 0.5), 1e-6)
    assert copied.get_buffer("1.scale") == 3
    assert not copied.training
    assert type(copied) is type(model)
    with ema.applied():
        inside = ema.average_model()
    assert_equal(weights_of(inside), {name: tensor.clone() for name, tensor in ema.shadow.items()})


def test_a_model_that_cannot_be_copied() -> None:
    """The error says so, and what works instead."""
    model = nn.Linear(3, 2)
    model.cached = model.weight * 2  # part of a graph: deepcopy refuses it
    ema = EMA(model, 0.5)
    ema.register()
    with pytest.raises(UsageError, match="cannot copy the model") as caught:
        ema.average_model()
    assert "ema.applied()" in caught.value.hint


def test_several_averages_equal_separate_ones() -> None:
    """Each average has the values of an EMA of its own, and is applied and copied by its number."""
    decays = (0.5, 0.9, 0.99)
    model, several, history = made(decays)
    for number, decay in enumerate(decays):
        alone = made(decay)[1]
        assert_equal(several.average_of(number), alone.shadow)
        with several.applied(number):
            assert_close(weights_of(model), folded(history, decay), 1e-6)
        assert_equal(weights_of(several.average_model(number)), alone.shadow)
    assert_equal(several.shadow, several.average_of(0))


def test_only_every_kth_step_is_read() -> None:
    """With ``every=3`` the first weights are those of step 3; steps 6 and 9 follow with d^3; others cost nothing."""
    model, ema, history = made(0.9, steps=2, every=3)
    with pytest.raises(UsageError, match="there is no average yet"):
        ema.apply_shadow()
    for seed in range(2, 11):
        move_weights(model, seed)
        with Watch(lambda name, _: pytest.fail(name) if ema.step % 3 != 2 else None):
            ema.update()
        history.append(weights_of(model))
    assert ema.step == 11
    assert_close(ema.shadow, folded(history[2::3], 0.9**3), 1e-6)


def test_not_a_number_stays_in_the_average() -> None:
    """Weights that are not finite enter the average; the finite elements are not touched by them."""
    model, ema, _ = made()
    with torch.no_grad():
        model.get_parameter("0.bias")[1:3] = torch.tensor([torch.nan, torch.inf])
    ema.update()
    with torch.no_grad():
        model.get_parameter("0.bias")[1:3] = 0
    ema.update()
    assert ema.shadow["0.bias"].isfinite().tolist() == [True, False, False, True]
    assert ema.shadow["0.weight"].isfinite().all()


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (["apply_shadow"], "there is no average yet"),
        (["average_model"], "there is no average yet"),
        (["restore"], "no average is applied"),
        (["register", "restore"], "no average is applied"),
        (["register", "apply_shadow", "apply_shadow"], "apply_shadow() while an average is applied"),
        (["register", "apply_shadow", "update"], "update() while an average is applied"),
        (["register", "apply_shadow", "register"], "register() while an average is applied"),
        (["register", "apply_shadow", "restore", "restore"], "no average is applied"),
    ],
)
def test_calls_out_of_order(calls: list[str], words: str) -> None:
    """A call that makes no sense is refused with what to do, and changes neither the model nor the averages."""
    model, _, history = made()
    ema = EMA(model, 0.5)
    *before, last = calls
    for call in before:
        getattr(ema, call)()
    state = copy.deepcopy(ema.state_dict())
    with pytest.raises(EmaAvgError) as caught:
        getattr(ema, last)()
    assert words in str(caught.value)
    assert "()" in caught.value.hint
    assert_equal(weights_of(model), history[-1])
    assert pickle.dumps(ema.state_dict()["cohorts"]) == pickle.dumps(state["cohorts"])
    assert ema.step == 0


def test_nothing_to_average() -> None:
    """A model without parameters to train is refused when its weights are read; it may get some until then."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Flatten()).requires_grad_(False)
    ema = EMA(model, 0.5)
    for call in (ema.register, ema.update):
        with pytest.raises(UsageError, match="no parameter that requires a gradient"):
            call()
    assert ema.step == 0
    model.requires_grad_()
    ema.update()
    assert ema.step == 1
