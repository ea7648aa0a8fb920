"""A real training run, small enough for a demonstration: a CNN with BatchNorm on scikit-learn's handwritten digits.

    python scripts/digits.py train demo/run              checkpoints as trainers write them, twice:
                                                         demo/run/*.pt nested, demo/run/safetensors/* flat
    python scripts/digits.py evaluate demo/run ema.safetensors

Every batch is blurred by noise and the learning rate stays high, so that the last steps still fluctuate: averaging is
made for this case.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

STEPS = 1000
SAVED = 13
"""Checkpoints, at equal distances in the second half."""
BATCH = 64
HELD_OUT = 600
NOISE = 0.3
LEARNING_RATE = 0.1


def make_model() -> nn.Sequential:
    """Return the network: two convolutions with BatchNorm and a linear layer."""
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


def load_data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return training and held-out images (n, 1, 8, 8) float32 and labels (n,) int64, always split the same way."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return (images[train], labels[train]), (images[test], labels[test])


def train(folder: Path, steps: int) -> None:
    """Train, saving a checkpoint every few steps of the second half."""
    every = steps // (2 * SAVED - 1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    (images, labels), held_out = load_data()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "safetensors").mkdir(parents=True)
    for step in range(1, steps + 1):
        batch = torch.randint(0, len(labels), (BATCH,), generator=generator)
        noise = NOISE * torch.randn(BATCH, *images.shape[1:], generator=generator)
        loss = functional.cross_entropy(model.train()(images[batch] + noise), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (steps - step) % every == 0 and steps - step < SAVED * every:
            save(folder, model, optimizer, step)
            print(f"step {step:>4}  loss {loss.item():.3f}  held-out accuracy {accuracy(model, held_out):.1%}")


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write one checkpoint nested, as training loops do, and one flat."""
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "args": argparse.Namespace(lr=LEARNING_RATE, batch=BATCH),
    }
    torch.save(checkpoint, folder / f"ckpt_{step}.pt")
    save_file(model.state_dict(), folder / "safetensors" / f"ckpt_{step}.safetensors")


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the share of right answers."""
    images, labels = data
    return float((model.eval()(images).argmax(dim=1) == labels).float().mean())


def evaluate(folder: Path, average: Path) -> None:
    """Compare the last checkpoint and the average on the held-out images."""
    _, held_out = load_data()
    model = make_model()
    last = max((folder / "safetensors").iterdir(), key=lambda path: int(path.stem.partition("_")[2]))
    print(f"held-out accuracy on {HELD_OUT} images")
    for name, path in (("last checkpoint", last), ("average", average)):
        model.load_state_dict(load_file(path), strict=True)
        print(f"  {name:<16} {accuracy(model, held_out):.1%}  {path}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("folder", type=Path)
    command.add_argument("--steps", type=int, default=STEPS)
    command = commands.add_parser("evaluate")
    command.add_argument("folder", type=Path)
    command.add_argument("average", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.folder, arguments.steps)
    else:
        evaluate(arguments.folder, arguments.average)


if __name__ == "__main__":
    main()
