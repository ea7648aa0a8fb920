"""A real training run: the offline average of its checkpoints is the average computed during training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ema_cli
from tests.helpers.series import State, load

pytestmark = pytest.mark.interop
DECAY = 0.8
EPOCHS = 12


def make_model() -> torch.nn.Module:
    """Return a small classifier of digits, with BatchNorm."""
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits of scikit-learn as tensors."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - not there in the quick set of tests

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


@dataclass(frozen=True, slots=True)
class Training:
    """The files and averages of a training run."""

    folder: Path
    ema: State
    swa: State


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Train for a few epochs, saving a checkpoint and updating an EMA and a plain average after each."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    swa = AveragedModel(model, use_buffers=True)
    images, labels = digits()
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(images)).split(256):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        for average in (ema, swa):
            average.update_parameters(model)
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint, folder / f"epoch_{epoch}.pt")
    return Training(folder, ema.module.state_dict(), swa.module.state_dict())


def assert_same_weights(found: State, kept: State) -> None:
    """Floating-point tensors agree to the precision of the running float32 average."""
    assert set(found) == set(kept)
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6)


def test_the_offline_ema_is_the_one_kept_during_training(training: Training, tmp_path: Path) -> None:
    """Folding the checkpoints with the same decay gives the EMA of torch after each of them."""
    report = ema_cli.average(training.folder, decay=DECAY, output=tmp_path / "ema.safetensors")
    assert [found.step for found in report.inputs] == list(range(1, EPOCHS + 1))
    assert report.averages[0].diagnostics.mean_age_unit == "epoch"
    assert_same_weights(load(tmp_path / "ema.safetensors"), training.ema)


def test_the_offline_average_is_the_one_kept_during_training(training: Training, tmp_path: Path) -> None:
    """``uniform`` is the average of stochastic weight averaging."""
    ema_cli.average(training.folder, method="uniform", output=tmp_path / "swa.safetensors")
    assert_same_weights(load(tmp_path / "swa.safetensors"), training.swa)


def test_the_average_predicts(training: Training, tmp_path: Path) -> None:
    """Loaded strictly into the model, the average classifies as well as a trained model does."""
    ema_cli.average(training.folder, decay=DECAY, output=tmp_path / "ema.safetensors", buffers="last")
    model = make_model()
    model.load_state_dict(load(tmp_path / "ema.safetensors"), strict=True)
    model.eval()
    images, labels = digits()
    with torch.no_grad():
        accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy > 0.95
