"""Scikit-learn's handwritten digits, blurred by noise, and a small network that reads them.

``ema-avg update-bn`` imports this file in ``scripts/demo``: ``--model scripts.digits:network --data
scripts.digits:training_batches``.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

Data = tuple[torch.Tensor, torch.Tensor]
"""Images (n, 1, 8, 8) float32 and labels (n,) int64."""
HELD_OUT = 600
NOISE = 0.3
WRONG = 0.2
"""The share of wrong labels in ``mislabeled``."""
BATCH = 64
WIDTH = 128


@cache
def table() -> np.ndarray:
    """Return a row per image: 64 pixels, 0 to 16, and the label.

    It is read from the file of scikit-learn's ``load_digits``: importing scikit-learn takes as long as importing torch.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("the digits are in scikit-learn: pip install scikit-learn")
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


def load_data(split: int = 0) -> tuple[Data, Data]:
    """Return training and held-out data; each split draws its own ``HELD_OUT`` images, always the same ones."""
    images = torch.tensor(table()[:, :-1], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(table()[:, -1], dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return (images[train], labels[train]), (images[test], labels[test])


def mislabeled(data: Data) -> Data:
    """Return the data with other labels for a share ``WRONG`` of the images, always the same ones."""
    images, labels = data
    chance = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(labels), generator=chance) < WRONG
    return images, torch.where(wrong, (labels + torch.randint(1, 10, labels.shape, generator=chance)) % 10, labels)


def noisy(images: torch.Tensor) -> torch.Tensor:
    """Return the images with noise, always the same one."""
    return images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """Return the untrained network of the demo: two hidden layers with BatchNorm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )


def training_batches() -> list[torch.Tensor]:
    """Return the noisy training images, in batches; those of another split if the variable ``SPLIT`` names one."""
    (images, _), _ = load_data(int(os.environ.get("SPLIT", "0")))
    return list(noisy(images).split(BATCH))


@torch.no_grad()
def accuracy(model: nn.Module, held_out: Data) -> float:
    """Return the percentage of right answers, in evaluation mode."""
    images, labels = held_out
    return 100 * float((model.eval()(images).argmax(dim=1) == labels).float().mean())
