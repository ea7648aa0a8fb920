"""Small real training runs with every kind of schedule that series of checkpoints come from.

The runs take seconds each on one core. ``probe_runs.py`` measures what the probe sees of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from digits import BATCH, NOISE, Data, load_data
from torch import nn
from torch.nn import functional

State = dict[str, torch.Tensor]
Rate = Callable[[int], float]
"""The learning rate of a step (the first is 1), relative to the largest."""
Schedule = Callable[[float], float]
"""The same by the part of the training that is done, 0 to 1."""
CONTEXT = 32
WIDTH = 48
SAVES = 12
"""Checkpoints of a run, unless it says otherwise."""


def constant(_: float) -> float:
    """Return a constant learning rate."""
    return 1.0


def cosine(done: float) -> float:
    """Return a learning rate that decays to zero as a cosine."""
    return 0.5 * (1 + math.cos(math.pi * done))


def warmup_cosine(done: float) -> float:
    """Return a learning rate that grows for a tenth of the training and then decays as a cosine."""
    return min(1.0, done / 0.1) * cosine(done)


def cycles(count: float) -> Schedule:
    """Return a learning rate that restarts ``count`` times and falls to a hundredth in between."""
    return lambda done: 0.01 + 0.99 * cosine((done * count) % 1)


def falling_by_ten(done: float) -> float:
    """Return a learning rate that is divided by ten after half and after three quarters of the training."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def stopped(done: float) -> float:
    """Return a learning rate that reaches zero after half of the training, and stays there."""
    return max(0.0, 1 - 2 * done)


def spike(done: float) -> float:
    """Return a constant learning rate with a short burst in the middle, after which the loss jumps."""
    return 10.0 if 0.5 <= done < 0.51 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model, its optimizer, and what one step does."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], torch.Tensor]
    state: Callable[[], State]


def convolutions() -> nn.Sequential:
    """Return two convolutions with BatchNorm and a linear layer, for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 16, 10),
    )


def digits(
    seed: int,
    *,
    start: State | None = None,
    rate: float = 0.1,
    noise: float = NOISE,
    network: Callable[[], nn.Module] = convolutions,
    data: Data | None = None,
) -> Task:
    """Return a network with BatchNorm on handwritten digits, SGD with momentum; fresh noise on every image."""
    torch.manual_seed(seed)
    images, labels = data or load_data()[0]
    generator = torch.Generator().manual_seed(seed + 1000)
    model = network()
    if start is not None:
        model.load_state_dict(start)

    def loss() -> torch.Tensor:
        batch = torch.randint(0, len(labels), (BATCH,), generator=generator)
        blurred = images[batch] + noise * torch.randn(BATCH, *images.shape[1:], generator=generator)
        return functional.cross_entropy(model(blurred), labels[batch])

    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    return Task(model=model, optimizer=optimizer, loss=loss, state=model.state_dict)


def perceptron(seed: int) -> Task:
    """Return an MLP on handwritten digits under strong weight decay: soon its weights only wander around a point."""
    torch.manual_seed(seed)
    (images, labels), _ = load_data()
    generator = torch.Generator().manual_seed(seed + 1000)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss() -> torch.Tensor:
        batch = torch.randint(0, len(labels), (32,), generator=generator)
        blurred = images[batch] + 0.5 * torch.randn(32, *images.shape[1:], generator=generator)
        return functional.cross_entropy(model(blurred), labels[batch])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    return Task(model=model, optimizer=optimizer, loss=loss, state=model.state_dict)


class CharTransformer(nn.Module):
    """Two layers of causal attention over characters."""

    def __init__(self, characters: int, *, width: int = WIDTH, context: int = CONTEXT) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Parameter(0.02 * torch.randn(context, width))
        layer = nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return logits (n, length, characters) for characters (n, length)."""
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden: torch.Tensor = self.layers(self.embed(text) + self.place, mask=mask, is_causal=True)
        return self.head(self.norm(hidden))  # type: ignore[no-any-return]


def characters(
    seed: int, *, start: State | None = None, rate: float = 3e-3, source: str = argparse.__file__, lora: bool = False
) -> Task:
    """Return a character transformer on the source of Python's own library, AdamW; only LoRA factors with ``lora``."""
    torch.manual_seed(seed)
    text = Path(source).read_text(encoding="ascii", errors="replace")
    encoded = torch.tensor([min(ord(character), 127) for character in text])
    generator = torch.Generator().manual_seed(seed + 1000)
    model: nn.Module = CharTransformer(128)
    if start is not None:
        model.load_state_dict(start)
    if lora:
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict  # noqa: PLC0415 - slow to import

        torch.manual_seed(seed + 2000)
        model = get_peft_model(model, LoraConfig(r=8, target_modules=["linear1", "linear2", "head"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss() -> torch.Tensor:
        starts = torch.randint(0, len(encoded) - CONTEXT - 1, (16, 1), generator=generator)
        window = encoded[starts + torch.arange(CONTEXT + 1)]
        return functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    state = partial(get_peft_model_state_dict, model) if lora else model.state_dict
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.1)
    return Task(model=model, optimizer=optimizer, loss=loss, state=state)


def steps_of(task: Task, rate: Rate, steps: int, *, after: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """Train from step ``after`` to ``steps``; yield each step and its loss."""
    base = [group.setdefault("initial_lr", group["lr"]) for group in task.optimizer.param_groups]
    for step in range(after + 1, steps + 1):
        for group, largest in zip(task.optimizer.param_groups, base, strict=True):
            group["lr"] = largest * rate(step)
        task.model.train()
        task.optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        task.optimizer.step()
        yield step, loss.detach()


def train(task: Task, steps: int, saved: Sequence[int], schedule: Schedule = constant) -> list[State]:
    """Train, and return the weights after each of the ``saved`` steps; step 0 is the initialization."""
    states = [copied(task.state())] if 0 in saved else []
    for step, _ in steps_of(task, lambda step: schedule((step - 1) / steps), steps):
        if step in saved:
            states.append(copied(task.state()))
    return states


def copied(state: State) -> State:
    """Return a copy of a state that training does not change."""
    return {name: value.detach().clone() for name, value in state.items()}


def evenly(steps: int, saves: int = SAVES, first: int = 0) -> list[int]:
    """Return the steps of ``saves`` checkpoints at equal distances after ``first``, the last one at the end."""
    return [first + (steps - first) * number // saves for number in range(1, saves + 1)]


def real_series(seed: int) -> Iterator[tuple[str, list[State]]]:
    """Yield runs as people average them, each with its checkpoints in order."""
    from_zero = [0, *evenly(600)]
    yield "CNN, constant rate, second half", train(digits(seed), 1000, evenly(1000, 13, 500))
    yield "CNN, constant rate, from step 0", train(digits(seed), 600, from_zero)
    yield "CNN, cosine to zero, from step 0", train(digits(seed), 600, from_zero, cosine)
    yield "CNN, long, around a minimum", train(digits(seed, rate=0.02), 3000, evenly(3000, 12, 1800))
    yield "MLP, at rest around a minimum", train(perceptron(seed), 5200, evenly(5200, 12, 4000))
    yield "CNN, cyclic rate, every low point", train(digits(seed), 1200, evenly(1200, 12), cycles(12))
    yield "CNN, cyclic rate, high and low points", train(digits(seed), 1200, evenly(1200, 12), cycles(6.001))
    yield "CNN, spike", train(digits(seed), 600, evenly(600), spike)
    for saves in (5, 6):
        name = f"rate / 10 at half and at three quarters, {saves} saves"
        yield f"CNN, {name}", train(digits(seed), 300, evenly(300, saves), falling_by_ten)
        yield f"MLP, {name}", train(perceptron(seed), 600, evenly(600, saves), falling_by_ten)
        yield f"transformer, {name}", train(characters(seed), 300, evenly(300, saves), falling_by_ten)
        yield f"CNN, cosine to zero, {saves} saves", train(digits(seed), 300, evenly(300, saves), cosine)
    yield "CNN, stopped after half", train(digits(seed), 600, evenly(600), stopped)
    yield "CNN, every step", train(digits(seed), 500, list(range(489, 501)))
    yield "CNN, 1, 2, 4, ... 512", train(digits(seed), 512, [0, *(1 << n for n in range(10))])
    yield "transformer, warm-up and cosine, from step 0", train(characters(seed), 600, from_zero, warmup_cosine)
    yield "transformer, constant rate, second half", train(characters(seed), 900, evenly(900, 12, 450))
    yield (
        "transformer, 1, 2, 4, ... 512",
        train(characters(seed), 512, [0, *(1 << n for n in range(10))], warmup_cosine),
    )
    yield "transformer, spike", train(characters(seed), 600, evenly(600), spike)
    yield "transformer, every step", train(characters(seed), 300, list(range(289, 301)))
    base = train(digits(seed), 600, [600], cosine)[0]
    yield "CNN, fine-tune", train(digits(seed + 50, start=base, rate=1e-3, noise=0.5), 240, [0, *evenly(240)], cosine)
    pretrained = train(characters(seed), 600, [600], warmup_cosine)[0]
    tuned = characters(seed + 50, start=pretrained, rate=1e-4, source=statistics.__file__)
    yield "transformer, fine-tune", train(tuned, 240, [0, *evenly(240)], warmup_cosine)
    adapted = characters(seed + 50, start=pretrained, rate=3e-3, source=statistics.__file__, lora=True)
    yield "LoRA from initialization", train(adapted, 240, [0, *evenly(240)], warmup_cosine)
