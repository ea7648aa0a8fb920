"""The callbacks for Lightning: the checkpoints of ModelCheckpoint averaged, and a live EMA that evaluations use."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ema_cli
from tests.helpers.live_training import Weights, weights_of
from tests.helpers.program import Run
from tests.helpers.series import data_section, load
from tests.interop.judge import DECAY, average
from tests.interop.trainings import assert_same, assert_weights, ema_by_hand, with_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
STEPS = (2, 4, 6)


def numbers(seed: int) -> torch.Tensor:
    """Return 24 rows of four numbers."""
    return torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))


def batches(seed: int) -> Any:
    """Return six batches of four rows."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(numbers(seed)), batch_size=4)


def module(pl: Any, *, optimizers: int = 1) -> Any:
    """Return a small network with BatchNorm as a LightningModule, with ``seen``: the weights after each batch."""

    class Net(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
            self.automatic_optimization = optimizers == 1
            self.seen: list[Weights] = []
            self.fails = False

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = (self.net(batch[0]) - 1).pow(2).mean()
            if not self.automatic_optimization:
                used = self.optimizers()
                self.manual_backward(loss)
                for optimizer in used:
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append(weights_of(self))

        def validation_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = (self.net(batch[0]) - 1).pow(2).mean()
            self.log("loss", loss, batch_size=4)
            if self.fails and not self.trainer.sanity_checking:
                raise ZeroDivisionError
            return loss

        test_step = validation_step

        def predict_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            scores: torch.Tensor = self.net(batch[0])
            return scores

        def configure_optimizers(self) -> Any:
            parts = [self.net] if optimizers == 1 else [self.net[0], self.net[1:]]
            made = [torch.optim.AdamW(part.parameters(), lr=0.05) for part in parts]
            return made if optimizers > 1 else made[0]

    return Net()


@pytest.fixture(scope="module")
def pl() -> Any:
    """Lightning, as most programs import it."""
    return importlib.import_module("lightning.pytorch")


def make_trainer(pl: Any, folder: Path, *callbacks: Any, saving: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Return a trainer for six steps that saves every second."""
    keep = pl.callbacks.ModelCheckpoint(
        dirpath=folder, **{"every_n_train_steps": 2, "save_top_k": -1, **(saving or {})}
    )
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given: dict[str, Any] = {"max_steps": 6, "accelerator": "cpu", "devices": 1, "val_check_interval": 3, **settings}
    return pl.Trainer(default_root_dir=folder, callbacks=[keep, *callbacks], **quiet, **given)


def loss_of(pl: Any, folder: Path, weights: Weights) -> float:
    """Return the loss of a network with these weights in a trainer without callbacks."""
    other = module(pl)
    with_weights(other, weights)
    loss: float = make_trainer(pl, folder).validate(other, batches(2), verbose=False)[0]["loss"]
    return loss


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_evaluations_use_the_average(package: str, tmp_path: Path) -> None:
    """Validation, test and prediction compute with the EMA, in training and by hand; the weights return exactly."""
    pl: Any = importlib.import_module(package)
    ema = ema_cli.LightningEMA(decay=DECAY)
    metrics: list[float] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_validation_end(self, trainer: Any, _: Any) -> None:
            metrics.append(float(trainer.callback_metrics["loss"]))

    trainer, net = make_trainer(pl, tmp_path, ema, Watch()), module(pl)
    trainer.fit(net, batches(1), batches(2))
    expected = ema_by_hand(net.seen, DECAY)
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, expected)
    assert_same(weights_of(net), net.seen[-1])
    assert metrics[-1] == pytest.approx(loss_of(pl, tmp_path, expected), rel=1e-5)
    for evaluate in (trainer.validate, trainer.test):
        found = evaluate(net, batches(2), verbose=False)[0]["loss"]
        assert found == pytest.approx(metrics[-1], rel=1e-5)
    predicted = torch.cat(trainer.predict(net, batches(2)))
    assert_same(weights_of(net), net.seen[-1])
    with_weights(net, expected).eval()
    torch.testing.assert_close(predicted, net.net(numbers(2)), rtol=1e-4, atol=1e-5)
    other = module(pl)
    assert trainer.validate(other, batches(2), verbose=False)[0]["loss"] == pytest.approx(
        loss_of(pl, tmp_path, weights_of(other)), rel=1e-5
    )


def test_it_agrees_with_the_callback_of_lightning(pl: Any, tmp_path: Path) -> None:
    """The average is that of ``EMAWeightAveraging`` with its buffers, which stays in the model at the end."""
    theirs, ours = module(pl), module(pl)
    averaging = pl.callbacks.EMAWeightAveraging(decay=DECAY, use_buffers=True)
    make_trainer(pl, tmp_path / "theirs", averaging).fit(theirs, batches(1))
    ema = ema_cli.LightningEMA(decay=DECAY)
    make_trainer(pl, tmp_path / "ours", ema).fit(ours, batches(1))
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, weights_of(theirs))


def test_the_training_is_the_same_with_the_callbacks(pl: Any, tmp_path: Path) -> None:
    """Weights after each step are bit for bit those of a training without callbacks, with dropout and shuffling."""
    runs: list[list[Weights]] = []
    averaging = ema_cli.LightningAverage(decay=DECAY, every_n_saves=1)
    for callbacks in ([], [ema_cli.LightningEMA(decay=DECAY), averaging]):
        net = module(pl)
        net.net.append(nn.Dropout())
        torch.manual_seed(1)
        trainer = make_trainer(pl, tmp_path / str(len(runs)), *callbacks, max_steps=12, val_check_interval=2)
        data = torch.utils.data.TensorDataset(numbers(1))
        trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True), batches(2))
        runs.append(net.seen)
    for expected, found in zip(*runs, strict=True):
        assert_same(found, expected)


def test_one_update_per_optimizer_step(pl: Any, tmp_path: Path) -> None:
    """With accumulated gradients an update is an optimizer step."""
    ema = ema_cli.LightningEMA(decay=DECAY)
    trainer, net = make_trainer(pl, tmp_path, ema, accumulate_grad_batches=2), module(pl)
    trainer.fit(net, batches(1))
    assert ema.ema is not None
    assert ema.ema.step == 6
    assert len(net.seen) == 12
    assert_weights(ema.ema.shadow, ema_by_hand(net.seen[1::2], DECAY))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_several_optimizers_by_hand(pl: Any, tmp_path: Path) -> None:
    """With manual optimization a batch in which both optimizers step is one update."""
    ema = ema_cli.LightningEMA(decay=DECAY)
    trainer, net = make_trainer(pl, tmp_path, ema), module(pl, optimizers=2)
    trainer.fit(net, batches(1))
    assert (trainer.global_step, len(net.seen)) == (6, 3)
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand(net.seen, DECAY))


@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": False},
        {"monitor": "loss", "every_n_train_steps": 3},
        {"every_n_train_steps": 3},
    ],
)
def test_checkpoints_have_the_own_weights(saving: dict[str, Any], pl: Any, tmp_path: Path) -> None:
    """Whenever ModelCheckpoint saves, at the end of a validation too, it saves the weights of the training."""
    trainer, net = make_trainer(pl, tmp_path, ema_cli.LightningEMA(decay=DECAY), saving=saving), module(pl)
    trainer.fit(net, batches(1), batches(2))
    saved = [torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")]
    assert saved
    for checkpoint in saved:
        step = checkpoint["global_step"]
        weights = {name: checkpoint["state_dict"][name] for name in net.seen[0]}
        assert_same(weights, net.seen[step - 1])
        state = checkpoint["callbacks"]["LightningEMA"]
        assert_weights(state["averages"][0], ema_by_hand(net.seen[:step], DECAY))


def test_a_checkpoint_in_the_middle_of_a_validation(pl: Any, tmp_path: Path) -> None:
    """What is saved while the average is in the model, by a signal for example, has the weights of the training."""

    class Save(pl.Callback):  # type: ignore[misc]
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / f"middle-{trainer.global_step}.ckpt")

    ema = ema_cli.LightningEMA(decay=DECAY)
    trainer, net = make_trainer(pl, tmp_path / "run", ema, Save()), module(pl)
    trainer.fit(net, batches(1), batches(2))
    for step in (3, 6):
        saved = torch.load(tmp_path / f"middle-{step}.ckpt", weights_only=True)["state_dict"]
        assert_same({name: saved[name] for name in net.seen[0]}, net.seen[step - 1])
    assert_same(weights_of(net), net.seen[-1])
    expected = loss_of(pl, tmp_path, ema_by_hand(net.seen, DECAY))
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_weights_return_after_an_error(pl: Any, tmp_path: Path) -> None:
    """If a validation fails, the weights of the training return, also in what is saved because of the error."""
    trainer = make_trainer(pl, tmp_path, ema_cli.LightningEMA(decay=DECAY), saving={"save_on_exception": True})
    net = module(pl)
    net.fails = True
    with pytest.raises(ZeroDivisionError):
        trainer.fit(net, batches(1), batches(2))
    assert len(net.seen) == 3
    assert_same(weights_of(net), net.seen[-1])
    saved = torch.load(tmp_path / "epoch=0-step=3.ckpt", weights_only=True)["state_dict"]
    assert_same({name: saved[name] for name in net.seen[0]}, net.seen[-1])


def test_a_resumed_training_continues_the_average(pl: Any, tmp_path: Path) -> None:
    """The average continues from a checkpoint, however its decay is written; a test uses that of its checkpoint."""
    before, after = module(pl), module(pl)
    make_trainer(pl, tmp_path / "a", ema_cli.LightningEMA(decay=DECAY), max_steps=4).fit(before, batches(1), batches(2))
    ema = ema_cli.LightningEMA(one_minus_decay=1 - DECAY, device="cpu")
    trainer = make_trainer(pl, tmp_path / "b", ema)
    trainer.fit(after, batches(1), batches(2), ckpt_path=tmp_path / "a" / "epoch=0-step=4.ckpt")
    assert len(after.seen) == 2
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand([*before.seen, *after.seen], DECAY))
    found = trainer.test(after, batches(2), ckpt_path=tmp_path / "a" / "epoch=0-step=2.ckpt", verbose=False)[0]["loss"]
    assert_same(weights_of(after), before.seen[1])
    assert found == pytest.approx(loss_of(pl, tmp_path, ema_by_hand(before.seen[:2], DECAY)), rel=1e-5)


def test_a_checkpoint_without_an_average(pl: Any, tmp_path: Path) -> None:
    """A test of a checkpoint without an average uses the weights in it, and not an average of other weights."""
    trainer, net = make_trainer(pl, tmp_path, ema_cli.LightningEMA(decay=DECAY)), module(pl)
    trainer.fit(net, batches(1), batches(2))
    plain = make_trainer(pl, tmp_path / "plain", saving={"save_weights_only": True})
    plain.fit(module(pl), batches(3))
    path = tmp_path / "plain" / "epoch=0-step=6.ckpt"
    found = trainer.test(net, batches(2), ckpt_path=path, verbose=False)[0]["loss"]
    assert found == pytest.approx(loss_of(pl, tmp_path, weights_of(net)), rel=1e-5)


def test_a_training_resumed_without_an_average(pl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the checkpoint has no average, there is a warning, and the average begins with the weights of that step."""
    before, after = module(pl), module(pl)
    make_trainer(pl, tmp_path / "a", max_steps=4).fit(before, batches(1))
    ema = ema_cli.LightningEMA(decay=DECAY)
    make_trainer(pl, tmp_path / "b", ema).fit(after, batches(1), ckpt_path=tmp_path / "a" / "epoch=0-step=4.ckpt")
    assert "begins anew at step 4" in caplog.text
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand([before.seen[-1], *after.seen], DECAY))


def test_another_decay_begins_anew(pl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An average with another decay is not continued: the reason is logged, and the training goes on."""
    make_trainer(pl, tmp_path / "a", ema_cli.LightningEMA(decay=0.5), max_steps=4).fit(module(pl), batches(1))
    ema, net = ema_cli.LightningEMA(decay=DECAY), module(pl)
    make_trainer(pl, tmp_path / "b", ema).fit(net, batches(1), ckpt_path=tmp_path / "a" / "epoch=0-step=4.ckpt")
    assert "the average of the checkpoint is not used: the state was made with ema decay=0.5" in caplog.text
    assert len(net.seen) == 2
    assert ema.ema is not None
    assert ema.ema.step == 6


def test_a_trainer_that_continues(pl: Any, tmp_path: Path) -> None:
    """A second ``fit`` of a trainer continues the training, the live average and the average of the checkpoints."""
    averaging, ema = ema_cli.LightningAverage(decay=DECAY), ema_cli.LightningEMA(decay=DECAY)
    trainer, net = make_trainer(pl, tmp_path, averaging, ema, max_steps=4), module(pl)
    trainer.fit(net, batches(1))
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(net, batches(1))
    assert len(net.seen) == 6
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand(net.seen, DECAY))
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == list(STEPS)


def test_the_averaged_module_is_written(pl: Any, tmp_path: Path) -> None:
    """The output of each average is a checkpoint of the averaged module."""
    decays = (0.5, 0.75)
    ema = ema_cli.LightningEMA(decay=decays, output="{run}/averaged_{decay}.ckpt")
    net = module(pl)
    make_trainer(pl, tmp_path, ema).fit(net, batches(1), batches(2))
    assert_same(weights_of(net), net.seen[-1])
    for decay in decays:
        other = module(pl)
        other.load_state_dict(torch.load(tmp_path / f"averaged_{decay}.ckpt", weights_only=True)["state_dict"])
        assert_weights(weights_of(other), ema_by_hand(net.seen, decay))


def test_the_checkpoints_are_averaged_at_the_end(pl: Any, ema_avg: Run, tmp_path: Path) -> None:
    """The output has the bytes of ``ema-avg`` run on the folder; ``last.ckpt`` and a live EMA are not in the way."""
    run = tmp_path / "run"
    averaging = ema_cli.LightningAverage(decay=DECAY)
    trainer = make_trainer(pl, run, ema_cli.LightningEMA(decay=0.9), averaging, saving={"save_last": True})
    net = module(pl)
    trainer.fit(net, batches(1))
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == list(STEPS)
    assert (run / "ema.report.json").is_file()
    average(ema_avg, run, "-o", "by_hand.safetensors")
    assert data_section(tmp_path / "by_hand.safetensors") == data_section(run / "ema.safetensors")
    other = module(pl)
    other.load_state_dict(load(run / "ema.safetensors"))
    assert_weights(weights_of(other), ema_by_hand([net.seen[step - 1] for step in STEPS], DECAY))


def test_the_best_checkpoints_are_averaged(pl: Any, tmp_path: Path) -> None:
    """With ``save_top_k`` the checkpoints that were kept are averaged, by every second save and at the end."""
    seen: list[Any] = []

    class Watch(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *_: Any) -> None:
            report = averaging.average.report
            seen.append(None if report is None else [entry.step for entry in report.inputs])

    averaging = ema_cli.LightningAverage(method="uniform", every_n_saves=2)
    saving = {"monitor": "loss", "mode": "max", "save_top_k": 2, "every_n_train_steps": 3}
    trainer = make_trainer(pl, tmp_path, averaging, Watch(), saving=saving, max_steps=12)
    trainer.fit(module(pl), batches(1), batches(2))
    kept = sorted(int(path.stem.rpartition("=")[2]) for path in tmp_path.glob("epoch*.ckpt"))
    assert len(kept) == 2
    assert seen == [None] * 6 + [[3, 6]] * 6
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == kept


def test_a_resumed_training_averages_earlier_checkpoints(pl: Any, tmp_path: Path) -> None:
    """Checkpoints before the one that the training resumes from are averaged, those of another training are not."""
    make_trainer(pl, tmp_path, max_steps=3, saving={"every_n_train_steps": 3}).fit(module(pl), batches(7))
    make_trainer(pl, tmp_path, ema_cli.LightningAverage(decay=DECAY), max_steps=4).fit(module(pl), batches(1))
    averaging = ema_cli.LightningAverage(decay=DECAY)
    trainer = make_trainer(pl, tmp_path, averaging)
    trainer.fit(module(pl), batches(1), ckpt_path=tmp_path / "epoch=0-step=4.ckpt")
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == list(STEPS)


def test_the_best_checkpoints_before_the_callback_are_averaged(pl: Any, tmp_path: Path) -> None:
    """A training resumed with the callback averages the checkpoints that were kept without it too, each step once."""
    saving = {"monitor": "loss", "mode": "max", "save_top_k": 3, "every_n_train_steps": 2, "filename": "{loss:.3f}"}
    given: dict[str, Any] = {"saving": saving, "val_check_interval": 2}
    make_trainer(pl, tmp_path, **given).fit(module(pl), batches(1), batches(2))
    steps = {torch.load(path, weights_only=True)["global_step"]: path for path in tmp_path.glob("*.ckpt")}
    averaging = ema_cli.LightningAverage(decay=DECAY)
    trainer = make_trainer(pl, tmp_path, averaging, **given, max_steps=7)
    trainer.fit(module(pl), batches(1), batches(2), ckpt_path=steps[6])
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == list(STEPS)


def test_a_checkpoint_callback_is_used_again(pl: Any, tmp_path: Path) -> None:
    """What the same ``ModelCheckpoint`` saved in an earlier training is not averaged."""
    saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1)
    averaging = ema_cli.LightningAverage(decay=DECAY)
    for _ in range(2):
        trainer = make_trainer(pl, tmp_path, averaging, saving, saving={"every_n_train_steps": 9})
        trainer.fit(module(pl), batches(1))
    assert averaging.average.report is not None
    names = [f"epoch=0-step={step}-v1.ckpt" for step in STEPS]
    assert [Path(entry.path).name for entry in averaging.average.report.inputs] == names


def test_a_callback_begins_anew_with_each_training(pl: Any, tmp_path: Path) -> None:
    """The second training with the same callbacks is averaged alone."""
    averaging, ema = ema_cli.LightningAverage(decay=DECAY), ema_cli.LightningEMA(decay=DECAY)
    for name in ("first", "second"):
        net = module(pl)
        make_trainer(pl, tmp_path / name, averaging, ema).fit(net, batches(1 if name == "first" else 3))
    expected = ema_by_hand([net.seen[step - 1] for step in STEPS], DECAY)
    found = load(tmp_path / "second" / "ema.safetensors")
    assert_weights({name: found[name] for name in expected}, expected)
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand(net.seen, DECAY))


def test_an_error_does_not_end_the_training(pl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If there is nothing to average, the training ends as usual, and the reason is logged."""
    trainer = make_trainer(pl, tmp_path, ema_cli.LightningAverage(decay=DECAY), saving={"save_top_k": 0})
    with caplog.at_level(logging.WARNING):
        trainer.fit(module(pl), batches(1))
    assert trainer.global_step == 6
    assert "the checkpoints were not averaged: the training saved none" in caplog.text
