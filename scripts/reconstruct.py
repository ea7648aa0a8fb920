"""How close each weighting of sparse checkpoints comes to the EMA over every training step, on two real runs.

    python scripts/reconstruct.py                        both runs, d = 0.999, a checkpoint every 100 steps
    python scripts/reconstruct.py --every 500 --run digits

Each run is trained with a live EMA, ``ema_cli.EMA`` in float64, from step 0 on. A loop by hand folds the weights of
every step too, E = d E + (1-d) theta: the script stops unless both agree. The checkpoints of the run, saved as trainers
do, are averaged by ``ema-avg`` on the command line. The script prints the distance ||average - EMA|| / ||EMA||, over
that of the last checkpoint, and the loss on held-out data: whether the requested EMA was rebuilt, not whether it is a
better model.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import load_data
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ema_cli import EMA

State = dict[str, torch.Tensor]
CONTEXT = 32
WIDTH = 24
HELD_OUT = 1024
LIVE_ERROR = 1e-12
"""Largest relative distance of the live EMA from the fold by hand, both in float64."""
METHODS = {
    "fold per checkpoint, from the first": ["--decay", "{decay}"],
    "the same, debiased": ["--decay", "{decay}", "--init", "debias"],
    "ema-warmup": ["--method", "ema-warmup", "--decay", "{decay}"],
    "uniform (SWA)": ["--method", "uniform"],
    "ema-hold (d^gap)": ["--method", "ema-hold", "--decay", "{decay}"],
    "ema --per step": ["--per", "step", "--decay", "{decay}"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model in training: what one step does, and the loss on data that it never sees."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Callable[[], torch.Tensor]
    """The loss of a fresh batch."""
    held_out: Callable[[], torch.Tensor]
    steps: int
    save: Callable[[State, Path, int], None]


def digits_run() -> Run:
    """An MLP on noisy handwritten digits: SGD with momentum, a constant learning rate; nested ``.pt`` files."""
    generator = torch.Generator().manual_seed(1)
    (images, labels), (test_images, test_labels) = load_data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def batch() -> torch.Tensor:
        chosen = torch.randint(0, len(labels), (32,), generator=generator)
        noise = 0.3 * torch.randn(images[chosen].shape, generator=generator)
        return functional.cross_entropy(model(images[chosen] + noise), labels[chosen])

    return Run(
        name="MLP on digits, SGD",
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        batch=batch,
        held_out=lambda: functional.cross_entropy(model(test_images), test_labels),
        steps=8000,
        save=lambda state, folder, step: torch.save({"model": state, "step": step}, folder / f"ckpt_{step}.pt"),
    )


class CharTransformer(nn.Module):
    """One layer of causal attention over characters."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, WIDTH)
        self.place = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return logits (n, length, characters) for characters (n, length)."""
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden = self.layer(self.embed(text) + self.place, src_mask=mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden)
        return logits


def text_run() -> Run:
    """A character transformer on the source of Python's own library, AdamW; flat ``.safetensors`` files."""
    generator = torch.Generator().manual_seed(2)
    text = Path(argparse.__file__).read_text(encoding="utf-8") + Path(random.__file__).read_text(encoding="utf-8")
    codes = {character: code for code, character in enumerate(sorted(set(text)))}
    encoded = torch.tensor([codes[character] for character in text])
    training, testing = encoded[: -len(encoded) // 5], encoded[-len(encoded) // 5 :]
    model = CharTransformer(len(codes))

    def loss_of(data: torch.Tensor, count: int, source: torch.Generator) -> torch.Tensor:
        starts = torch.randint(0, len(data) - CONTEXT - 1, (count, 1), generator=source)
        window = data[starts + torch.arange(CONTEXT + 1)]
        return functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    return Run(
        name="character transformer, AdamW",
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        batch=lambda: loss_of(training, 32, generator),
        held_out=lambda: loss_of(testing, HELD_OUT, torch.Generator().manual_seed(3)),
        steps=5000,
        save=lambda state, folder, step: save_file(state, folder / f"step_{step}.safetensors"),
    )


RUNS = {"digits": digits_run, "text": text_run}


def saved_steps(steps: int, every: int) -> dict[str, set[int]]:
    """Return the steps of the checkpoints of each folder; uneven gaps have the same mean, and end at the last step."""
    even = set(range(every, steps + 1, every))
    uneven = {*random.Random(0).sample(range(1, steps), steps // every - 1), steps}
    return {"even spacing": even, "even spacing, with step 0": {0, *even}, "uneven spacing": uneven}


def train(run: Run, steps: int, decay: float, kept: dict[Path, set[int]]) -> State:
    """Train, save the checkpoints of each folder, and return the live EMA, in float64."""
    live = {kind: EMA(run.model, decay, dtype=kind) for kind in (torch.float64, torch.float32)}
    for average in live.values():
        average.register()
    by_hand = {name: value.double() for name, value in run.model.state_dict().items()}
    for step in range(steps + 1):
        if step:
            take_step(run)
            for average in live.values():
                average.update()
            for name, value in run.model.state_dict().items():
                by_hand[name].mul_(decay).add_(value, alpha=1 - decay)
        for folder, wanted in kept.items():
            if step in wanted:
                run.save(run.model.state_dict(), folder, step)
    errors = {kind: distance(average.shadow, by_hand) / norm(by_hand) for kind, average in live.items()}
    found = ", ".join(f"{error:.1e} in {str(kind).removeprefix('torch.')}" for kind, error in errors.items())
    print(f"\nthe live EMA is off the fold of every step by hand by {found}")
    if errors[torch.float64] > LIVE_ERROR:
        raise SystemExit(f"the live EMA in float64 is off by more than {LIVE_ERROR}")
    return live[torch.float64].shadow


def take_step(run: Run) -> None:
    """Take one step of the optimizer."""
    loss = run.batch()
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()


def averages(folder: Path, decay: float) -> Iterator[tuple[str, State]]:
    """Average the checkpoints of a folder in every way, on the command line as users do."""
    for name, options in METHODS.items():
        output = folder.parent / "average.safetensors"
        arguments = [option.format(decay=decay) for option in options]
        command = [sys.executable, "-m", "ema_cli", str(folder), *arguments, "-o", str(output)]
        subprocess.run([*command, "--dtype", "float64", "--force", "--quiet"], check=True)
        yield name, dict(load_file(output))


def distance(a: State, b: State) -> float:
    """Return ||a - b|| over all tensors together."""
    return math.sqrt(sum(float((a[name].double() - b[name]).square().sum()) for name in b))


def norm(state: State) -> float:
    """Return ||a|| over all tensors together."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in state.values()))


@torch.no_grad()
def held_out_loss(run: Run, state: State) -> float:
    """Return the loss of some weights on held-out data."""
    run.model.load_state_dict({name: value.float() for name, value in state.items()})
    return float(run.held_out())


def show(run: Run, folder: Path, ema: State, last: State, decay: float) -> None:
    """Print the rows of one folder of checkpoints."""
    furthest = distance(last, ema)
    for name, state in (("last checkpoint", last), *averages(folder, decay)):
        off = distance(state, ema)
        loss = held_out_loss(run, state)
        print(f"| {name} | {100 * off / norm(ema):.2f} % | {off / furthest:.3f} | {loss:.4f} |", flush=True)


def main() -> None:
    """Parse the command line, train, average and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=sorted(RUNS), action="append")
    parser.add_argument("--decay", type=float, default=0.999)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, help="fewer steps than the run has")
    arguments = parser.parse_args()
    for name in arguments.run or sorted(RUNS):
        torch.manual_seed(0)
        run = RUNS[name]()
        steps = arguments.steps or run.steps
        with tempfile.TemporaryDirectory() as root:
            kept = {}
            for spacing, wanted in saved_steps(steps, arguments.every).items():
                kept[Path(root) / spacing] = wanted
                (Path(root) / spacing).mkdir()
            ema = train(run, steps, arguments.decay, kept)
            last = {key: value.clone() for key, value in run.model.state_dict().items()}
            print(f"\n{run.name}: {sum(v.numel() for v in ema.values()):,} parameters, {steps:,} steps, ", end="")
            print(f"d = {arguments.decay}; held-out loss of the live EMA {held_out_loss(run, ema):.4f}")
            for folder, wanted in kept.items():
                print(f"\n{len(wanted)} checkpoints, {folder.name}, {arguments.every} steps on average\n")
                print("| weights | distance to the EMA | over that of the last | held-out loss |")
                print("|---|---:|---:|---:|")
                show(run, folder, ema, last, arguments.decay)


if __name__ == "__main__":
    main()
