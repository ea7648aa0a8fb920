"""Runs of Lightning: its checkpoints have the module under ``state_dict``, next to loops, callbacks and optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.program import Run
from tests.helpers.series import load
from tests.interop.judge import assert_fold, average, fold, names_in

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
STEPS = (2, 4, 6)


def module() -> Any:
    """Return a small network with BatchNorm and a hyperparameter, as a LightningModule."""
    import lightning

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, width: int = 5) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            layers = (torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2))
            self.net = torch.nn.Sequential(*layers)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).pow(2).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    return Net()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, saved every two by ModelCheckpoint, with a copy of the last one."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    folder = tmp_path_factory.mktemp("lightning")
    saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_top_k=-1, save_last=True)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=6, accelerator="cpu", devices=1, callbacks=[saving], **quiet)
    numbers = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(numbers)
    trainer.fit(module(), torch.utils.data.DataLoader(data, batch_size=4))
    assert names_in(folder) == {"last.ckpt", *(f"epoch=0-step={step}.ckpt" for step in STEPS)}
    return folder


def test_a_run_of_lightning_is_averaged(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The average of a folder of ModelCheckpoint loads into the module; ``last.ckpt`` is not counted twice."""
    done = average(ema_avg, run, "-o", "ema.safetensors")
    assert "last.ckpt" in done.stderr
    found = load(tmp_path / "ema.safetensors")
    kind = type(module())
    states = [kind.load_from_checkpoint(run / f"epoch=0-step={step}.ckpt").state_dict() for step in STEPS]
    assert_fold(found, states)
    averaged, expected = module(), module()
    averaged.load_state_dict(found)
    expected.load_state_dict(fold(states))
    words = torch.randn(7, 4)
    assert averaged.eval().net(words).equal(expected.eval().net(words))


def test_lightning_keeps_the_raw_weights_beside_its_average(ema_avg: Run, tmp_path: Path) -> None:
    """With ``EMAWeightAveraging`` the raw weights are averaged, that is stated, and ``--key`` takes the average."""
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    folder = tmp_path / "run"
    saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_top_k=-1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    averaging = EMAWeightAveraging(decay=0.5)
    trainer = lightning.Trainer(max_steps=6, accelerator="cpu", devices=1, callbacks=[averaging, saving], **quiet)
    numbers = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    trainer.fit(module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(numbers), batch_size=4))
    files = [torch.load(folder / f"epoch=0-step={step}.ckpt", weights_only=False) for step in STEPS]
    for key, options in (("current_model_state", ()), ("state_dict", ("--key", "state_dict"))):
        done = average(ema_avg, folder, "-o", "ema.safetensors", "--force", *options)
        assert "(weights-" not in done.stderr
        assert ("Lightning keeps the raw weights" in done.stderr) == (not options)
        assert_fold(load(tmp_path / "ema.safetensors"), [file[key] for file in files])
