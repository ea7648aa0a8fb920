"""``--format same``: trainers load the average as a checkpoint of their own, and continue from it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

import ema_cli
from tests.helpers.live_training import Weights, weights_of
from tests.helpers.program import Run
from tests.helpers.series import load
from tests.interop.judge import DECAY, assert_fold, average, disturb, fold, names_in
from tests.interop.models import gpt2
from tests.interop.trainings import assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is .*unavailable or uninitialized:UserWarning"),
]
ROOT = Path(__file__).parent.parent.parent
STEPS = (2, 4, 6)


def assert_rest(found: Any, expected: Any, path: str = "") -> None:
    """Assert that two nested values are equal, with the bits of their tensors."""
    assert type(found) is type(expected), path
    if isinstance(found, dict):
        assert list(found) == list(expected), path
        for key, value in found.items():
            assert_rest(value, expected[key], f"{path}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_rest(one, other, f"{path}[{number}]")
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def lightning_trainer(folder: Path, steps: int, *callbacks: Any) -> Any:
    """Return a trainer that saves every two steps."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_top_k=-1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=[saving, *callbacks], **quiet)


def lightning_module() -> Any:
    """Return a module with BatchNorm, an optimizer with moments and a schedule of the learning rate."""
    import lightning

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).pow(2).mean()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    return Net()


def numbers() -> Any:
    """Return six batches of numbers."""
    data = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=4)


def test_lightning_continues_from_the_average(ema_avg: Run, tmp_path: Path) -> None:
    """``fit(ckpt_path=)`` restores step, loops, moments and schedule, and begins with the averages."""
    from lightning.pytorch.callbacks import Callback

    run = tmp_path / "run"
    lightning_trainer(run, 6).fit(lightning_module(), numbers())
    files = [torch.load(run / f"epoch=0-step={step}.ckpt", weights_only=False) for step in STEPS]
    average(ema_avg, run, "-o", tmp_path / "averaged.ckpt")
    written = torch.load(tmp_path / "averaged.ckpt", weights_only=False)
    assert_fold(written.pop("state_dict"), [file["state_dict"] for file in files])
    assert_rest(written, {key: value for key, value in files[-1].items() if key != "state_dict"})
    began: dict[str, Any] = {}

    class Watch(Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            began.update(step=trainer.global_step, weights=copy.deepcopy(pl_module.state_dict()))
            began["moments"] = {
                name: value.clone() for name, value in trainer.optimizers[0].state_dict()["state"][0].items()
            }

    trainer = lightning_trainer(tmp_path / "next", 8, Watch())
    trainer.fit(lightning_module(), numbers(), ckpt_path=tmp_path / "averaged.ckpt")
    assert began["step"] == STEPS[-1]
    assert_fold(began["weights"], [file["state_dict"] for file in files])
    assert_rest(began["moments"], files[-1]["optimizer_states"][0]["state"][0])
    assert trainer.global_step == 8
    assert names_in(tmp_path / "next") == {"epoch=0-step=8.ckpt"}


def test_the_trainer_of_transformers_continues_from_the_average(ema_avg: Run, tmp_path: Path) -> None:
    """``resume_from_checkpoint=`` takes the folder: step and moments of the last checkpoint, and other weights."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    generator = torch.Generator().manual_seed(1)
    words: Any = [{"input_ids": line, "labels": line} for line in torch.randint(0, 9, (48, 8), generator=generator)]
    began: dict[str, Any] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, _: Any, state: Any, __: Any, model: Any, optimizer: Any, **___: Any) -> None:
            moments = copy.deepcopy(optimizer.state_dict()["state"])
            began.update(step=state.global_step, weights=weights_of(model), moments=moments)

    def trainer(steps: int, folder: Path, *callbacks: Any) -> Any:
        quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.05}
        arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, save_steps=2, **quiet)
        return Trainer(model=gpt2(), args=arguments, train_dataset=words, callbacks=list(callbacks))

    trainer(6, tmp_path / "run").train()
    folders = [tmp_path / "run" / f"checkpoint-{step}" for step in STEPS]
    average(ema_avg, tmp_path / "run", "--format", "same", "-o", f"{tmp_path}/averaged/")
    assert names_in(tmp_path / "averaged") == names_in(folders[-1])
    for name in sorted(names_in(folders[-1]) - {"model.safetensors"}):
        assert (tmp_path / "averaged" / name).read_bytes() == (folders[-1] / name).read_bytes(), name
    continued = trainer(8, tmp_path / "next", Watch())
    continued.train(resume_from_checkpoint=str(tmp_path / "averaged"))
    states = [load(folder / "model.safetensors") for folder in folders]
    expected = fold(states)
    assert began["step"] == STEPS[-1]
    assert_same({name: began["weights"][name] for name in expected}, expected)
    assert_rest(began["moments"], torch.load(folders[-1] / "optimizer.pt", weights_only=True)["state"])
    assert continued.state.global_step == 8
    assert names_in(tmp_path / "next") == {"checkpoint-8"}


def test_accelerate_loads_the_average(ema_avg: Run, tmp_path: Path) -> None:
    """``load_state`` takes the folder: weights, moments, schedule and the state of the generators."""
    from accelerate import Accelerator

    def prepared() -> tuple[Any, Any, Any, Any]:
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return accelerator, *accelerator.prepare(model, optimizer, schedule)

    accelerator, model, optimizer, schedule = prepared()
    states: list[Weights] = []
    for step in STEPS:
        accelerator.backward(model(torch.randn(8, 4)).pow(2).sum())
        optimizer.step()
        schedule.step()
        disturb(model, step)
        states.append(weights_of(model))
        accelerator.save_state(str(tmp_path / "run" / f"step_{step}"))
    average(ema_avg, tmp_path / "run", "--format", "same", "-o", f"{tmp_path}/averaged/")
    assert names_in(tmp_path / "averaged") == names_in(tmp_path / "run" / "step_6")
    moments, rate = optimizer.state_dict(), schedule.get_last_lr()
    torch.manual_seed(3)
    other, model, optimizer, schedule = prepared()
    other.load_state(str(tmp_path / "averaged"))
    assert_fold(weights_of(model), states)
    assert_rest(optimizer.state_dict(), moments)
    assert schedule.get_last_lr() == rate


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DCP folders that two processes saved during training under FSDP2."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.interop.ranks", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "fsdp2"


def test_dcp_loads_the_average(saved: Path, tmp_path: Path) -> None:
    """In one process, and by two and by four that each load their part, in every sharding: weights, moments and step.

    This is what torchtitan's loader calls, for the folder of a step with ``model``, ``optimizer`` and others.
    """
    ema_cli.average(saved / "run", decay=DECAY, format="same", output=tmp_path / "averaged")
    last = saved / "run" / "step-11"
    states = [torch.load(saved / f"whole_{step}.pt", weights_only=True) for step in (9, 10, 11)]
    expected = fold(states)
    model = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load({"model": model}, checkpoint_id=tmp_path / "averaged", no_dist=True)
    assert_fold(model, states)
    found, before = (_load_state_dict_from_keys(checkpoint_id=str(one)) for one in (tmp_path / "averaged", last))
    assert found.pop("model").keys() == before.pop("model").keys()
    assert_rest(found, before)
    torch.save(expected, tmp_path / "whole.pt")
    for count in (2, 4):
        command = [sys.executable, "-m", "tests.interop.ranks_of_dcp", str(count)]
        command += [str(tmp_path / "averaged"), str(tmp_path / "whole.pt"), "model"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
