"""The callbacks for the Trainer of transformers: its checkpoints averaged, and a live EMA that it evaluates with."""

from __future__ import annotations

import copy
import gc
import json
import logging
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import ema_cli
from tests.helpers.live_training import Weights, weights_of
from tests.helpers.program import Run
from tests.helpers.series import data_section, load
from tests.interop.judge import DECAY, average, names_in
from tests.interop.models import gpt2
from tests.interop.trainings import assert_same, assert_weights, ema_by_hand, with_weights

STEPS = (2, 4, 6)


def words(count: int) -> Any:
    """Return lines of random words, with themselves as labels."""
    generator = torch.Generator().manual_seed(1)
    lines = (torch.randint(0, 9, (8,), generator=generator) for _ in range(count))
    return [{"input_ids": line, "labels": line} for line in lines]


def loss_of(weights: Weights, lines: Any) -> float:
    """Return the loss that a Trainer without callbacks has for a model with these weights."""
    with TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder))
        with_weights(trainer.model, weights)
        loss: float = trainer.evaluate(lines)["eval_loss"]
        return loss


def make_trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    """Return a Trainer for six steps with a save every two, and ``trainer.seen``: the weights after each step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seen: list[Weights] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            seen.append(weights_of(model))

    further = {name: settings.pop(name) for name in ("eval_dataset", "compute_metrics") if name in settings}
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    defaults: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    arguments = TrainingArguments(output_dir=str(folder), **{**quiet, **defaults, **settings})
    lines = words(48)
    trainer = Trainer(gpt2(), arguments, train_dataset=lines, callbacks=[Watch(), *callbacks], **further)
    trainer.seen = seen
    return trainer


def test_evaluations_use_the_average(tmp_path: Path) -> None:
    """Every evaluation has the loss of the EMA: in training, of several sets, by hand; the model keeps its weights."""
    ema = ema_cli.TrainerEMA(decay=DECAY)
    sets = {"a": words(8), "b": words(13)[8:]}
    trainer = make_trainer(tmp_path, ema, eval_dataset=sets, eval_strategy="steps", eval_steps=3, eval_on_start=True)
    first = weights_of(trainer.model)
    trainer.train()
    for step, expected in {
        0: first,
        3: ema_by_hand(trainer.seen[:3], DECAY),
        6: ema_by_hand(trainer.seen, DECAY),
    }.items():
        found = {name: entry[name] for entry in trainer.state.log_history for name in entry if entry["step"] == step}
        for name, lines in sets.items():
            assert found[f"eval_{name}_loss"] == pytest.approx(loss_of(expected, lines), rel=1e-5)
    after = ema_by_hand(trainer.seen, DECAY)
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, after)
    assert trainer.evaluate(sets["b"])["eval_loss"] == pytest.approx(loss_of(after, sets["b"]), rel=1e-5)
    assert trainer.predict(sets["b"]).metrics["test_loss"] == pytest.approx(loss_of(after, sets["b"]), rel=1e-5)
    assert_same(weights_of(trainer.model), trainer.seen[-1])
    trainer.remove_callback(ema)
    assert trainer.evaluate(sets["b"])["eval_loss"] == pytest.approx(loss_of(trainer.seen[-1], sets["b"]), rel=1e-5)


def test_one_update_per_optimizer_step(tmp_path: Path) -> None:
    """With accumulated gradients an update is an optimizer step; checkpoints have the model's own weights."""
    ema = ema_cli.TrainerEMA(half_life=2)
    trainer = make_trainer(
        tmp_path, gradient_accumulation_steps=3, eval_strategy="steps", eval_steps=2, eval_dataset=words(8)
    )
    trainer.add_callback(ema)
    trainer.train()
    assert ema.ema is not None
    assert ema.ema.step == len(trainer.seen) == 6
    assert_weights(ema.ema.shadow, ema_by_hand(trainer.seen, 0.5**0.5))
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged[-1] == pytest.approx(loss_of(ema_by_hand(trainer.seen, 0.5**0.5), words(8)), rel=1e-5)
    for step in STEPS:
        saved = load(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert_same({name: saved[name] for name in trainer.seen[0]}, trainer.seen[step - 1])


def test_the_training_is_the_same_with_the_callbacks(tmp_path: Path) -> None:
    """Weights after each step are bit for bit those of a training without callbacks, with dropout and evaluations."""
    given: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": words(8)}
    runs: list[list[Weights]] = []
    averaging = ema_cli.TrainerAverage(decay=DECAY, every_n_saves=1)
    for callbacks in ([], [ema_cli.TrainerEMA(decay=DECAY), averaging]):
        trainer = make_trainer(tmp_path / str(len(runs)), *callbacks, **given)  # sets the seed
        assert trainer.model.config.resid_pdrop > 0
        trainer.train()
        runs.append(trainer.seen)
    for expected, found in zip(*runs, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("by_hand", [True, False])
def test_weights_return_after_an_error(by_hand: bool, tmp_path: Path) -> None:
    """If an evaluation fails, in training or by hand, the model has its own weights again, bit for bit."""

    def fail(_: Any) -> dict[str, float]:
        raise ZeroDivisionError

    ema = ema_cli.TrainerEMA(decay=DECAY)
    settings: dict[str, Any] = {} if by_hand else {"eval_strategy": "steps", "eval_steps": 3}
    trainer = make_trainer(tmp_path, ema, eval_dataset=words(8), compute_metrics=fail, **settings)
    if by_hand:
        trainer.train()
    with pytest.raises(ZeroDivisionError):
        (trainer.evaluate if by_hand else trainer.train)()
    assert len(trainer.seen) == (6 if by_hand else 3)
    assert_same(weights_of(trainer.model), trainer.seen[-1])


@pytest.mark.parametrize("added", [True, False])
def test_a_resumed_training_continues_the_average(added: bool, tmp_path: Path) -> None:
    """The state in a checkpoint folder, wherever it was moved, is continued, also by a callback that is added later."""
    before = make_trainer(tmp_path / "before", ema_cli.TrainerEMA(decay=DECAY), max_steps=4)
    before.train()
    shutil.move(tmp_path / "before" / "checkpoint-4", tmp_path / "moved")
    ema = ema_cli.TrainerEMA(decay=DECAY)
    after = make_trainer(tmp_path / "after", *([] if added else [ema]))
    if added:
        after.add_callback(ema)
    after.train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert len(after.seen) == 2
    assert ema.ema is not None
    assert ema.ema.step == 6
    assert_weights(ema.ema.shadow, ema_by_hand([*before.seen, *after.seen], DECAY))


@pytest.mark.parametrize("state", [None, b"", b"PK\x03\x04 cut"])
def test_a_training_resumed_without_a_state(
    state: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the checkpoint has no average, or a broken one, there is a warning, and the average begins at that step."""
    before = make_trainer(tmp_path, max_steps=4)
    before.train()
    if state is not None:
        (tmp_path / "checkpoint-4" / "ema_state.pt").write_bytes(state)
    ema = ema_cli.TrainerEMA(decay=DECAY)
    after = make_trainer(tmp_path, ema)
    after.train(resume_from_checkpoint=True)
    assert "begins anew at step 4" in caplog.text
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, ema_by_hand([before.seen[-1], *after.seen], DECAY))


def test_the_best_checkpoint_has_its_average(tmp_path: Path) -> None:
    """With ``load_best_model_at_end`` the average is that of the best checkpoint, and so is the output folder."""
    calls: list[None] = []

    def worse_each_time(_: Any) -> dict[str, float]:
        calls.append(None)
        return {"score": -len(calls)}

    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "eval_strategy": "steps", "eval_steps": 2}
    ema = ema_cli.TrainerEMA(decay=DECAY, output=tmp_path / "averaged")
    given: dict[str, Any] = {"eval_dataset": words(8), "compute_metrics": worse_each_time, **best}
    trainer = make_trainer(tmp_path / "out", ema, **given)
    trainer.train()
    expected = ema_by_hand(trainer.seen[:2], DECAY)
    assert ema.ema is not None
    assert_weights(ema.ema.shadow, expected)
    assert_same(weights_of(trainer.model), trainer.seen[1])
    assert_weights(weights_of(type(trainer.model).from_pretrained(tmp_path / "averaged")), expected)


def test_a_trainer_has_one_live_average(tmp_path: Path) -> None:
    """A second one, whose state would replace that of the first in the checkpoints, is refused at once."""
    with pytest.raises(ema_cli.EmaAvgError, match="one TrainerEMA"):
        make_trainer(tmp_path, ema_cli.TrainerEMA(decay=0.5), ema_cli.TrainerEMA(decay=0.75))


def test_the_output_is_not_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averaged model is never sent to the Hub in place of the model."""
    trainer = make_trainer(tmp_path / "out", ema_cli.TrainerEMA(decay=DECAY, output=tmp_path / "averaged"))
    pushed: list[Any] = []
    monkeypatch.setattr(trainer, "push_to_hub", lambda **given: pushed.append(given))
    monkeypatch.setattr(trainer, "_push_from_checkpoint", lambda _: None)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == []
    found = type(trainer.model).from_pretrained(tmp_path / "averaged")
    assert_weights(weights_of(found), ema_by_hand(trainer.seen, DECAY))


def test_a_copy_of_a_trainer_evaluates_its_own_model(tmp_path: Path) -> None:
    """A copied trainer uses its own copies, nothing keeps a trainer, and an applied average is not applied again."""
    ema = ema_cli.TrainerEMA(decay=DECAY)
    trainer = make_trainer(tmp_path, ema, save_strategy="no")
    trainer.train()
    expected = ema_by_hand(trainer.seen, DECAY)
    assert ema.ema is not None
    with ema.ema.applied():
        assert trainer.evaluate(words(8))["eval_loss"] == pytest.approx(loss_of(expected, words(8)), rel=1e-5)
    other = copy.deepcopy(trainer)
    other.remove_callback(ema_cli.TrainerEMA)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    with_weights(other.model, zeros)
    assert other.evaluate(words(8))["eval_loss"] == pytest.approx(loss_of(zeros, words(8)), rel=1e-5)
    alive = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert alive() is None


def test_trials_have_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hyperparameter search states and averages are in the folder of the trial."""
    trainer = make_trainer(tmp_path, ema_cli.TrainerEMA(decay=DECAY), ema_cli.TrainerAverage(decay=DECAY))
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)  # its trials
    monkeypatch.setattr(trainer, "_get_output_dir", lambda trial: str(tmp_path / ("run-7" if trial else "")))
    trainer.train(trial={"learning_rate": 0.05})
    states = sorted(tmp_path.glob("run-7/*/ema_state.pt"))
    assert [path.parent.name for path in states] == [f"checkpoint-{step}" for step in STEPS]
    assert names_in(tmp_path / "run-7") >= {"ema", "ema.report.json"}


def test_several_averages_have_their_outputs(tmp_path: Path) -> None:
    """The output of several averages has a field for the decay; the first is evaluated."""
    ema = ema_cli.TrainerEMA(decay=(0.5, 0.75), output="{run}/../averaged_{decay}")
    trainer = make_trainer(tmp_path / "out", ema, save_strategy="no")
    trainer.train()
    for decay in (0.5, 0.75):
        found = type(trainer.model).from_pretrained(tmp_path / f"averaged_{decay}")
        assert_weights(weights_of(found), ema_by_hand(trainer.seen, decay))
    assert trainer.evaluate(words(8))["eval_loss"] == pytest.approx(
        loss_of(ema_by_hand(trainer.seen, 0.5), words(8)), rel=1e-5
    )


def test_the_checkpoints_are_averaged_at_the_end(ema_avg: Run, tmp_path: Path) -> None:
    """The output folder has the bytes of ``ema-avg`` run on the folder, a report beside it, and loads.

    Checkpoints of an earlier training in the same folder are not averaged.
    """
    out = tmp_path / "out"
    for step in (1, 8):
        gpt2().save_pretrained(out / f"checkpoint-{step}")
    averaging = ema_cli.TrainerAverage(decay=DECAY)
    trainer = make_trainer(out, ema_cli.TrainerEMA(decay=0.9), averaging)
    trainer.train()
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == list(STEPS)
    assert json.loads((out / "ema.report.json").read_text())["averages"][0]["method"]["decay"] == DECAY
    assert names_in(out / "ema") == {"config.json", "generation_config.json", "model.safetensors"}
    average(ema_avg, *(out / f"checkpoint-{step}" for step in STEPS), "-o", "by_hand/")
    assert data_section(tmp_path / "by_hand/model.safetensors") == data_section(out / "ema/model.safetensors")
    found = weights_of(type(trainer.model).from_pretrained(out / "ema"))
    assert_weights(found, ema_by_hand([trainer.seen[step - 1] for step in STEPS], DECAY))
    assert_same(weights_of(trainer.model), trainer.seen[-1])


def test_the_checkpoints_are_averaged_again_and_again(tmp_path: Path) -> None:
    """After every second save there is an average of what is left; a resumed training includes earlier checkpoints."""
    from transformers import TrainerCallback

    averaging = ema_cli.TrainerAverage(method="uniform", every_n_saves=2, output="{run}/swa.safetensors")
    counts = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_save(self, *_: Any, **__: Any) -> None:
            report = averaging.average.report
            counts.append(None if report is None else [entry.step for entry in report.inputs])

    make_trainer(tmp_path, averaging, Watch(), save_steps=1, save_total_limit=3, max_steps=3).train()
    assert counts == [None, [1, 2], [1, 2]]
    counts.clear()
    trainer = make_trainer(tmp_path, averaging, Watch(), save_steps=1, save_total_limit=3)
    trainer.train(resume_from_checkpoint=True)
    assert counts == [[2, 3, 4], [2, 3, 4], [4, 5, 6]]
    assert averaging.average.report is not None
    assert [entry.step for entry in averaging.average.report.inputs] == [4, 5, 6]
    swa = load(tmp_path / "swa.safetensors")
    states = [load(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (4, 5, 6)]
    assert_weights(swa, {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})


def test_a_training_resumed_from_another_folder(tmp_path: Path) -> None:
    """The checkpoints before the one that it resumes from are averaged, and not others in its output folder."""
    make_trainer(tmp_path / "other", max_steps=3, save_steps=1).train()
    make_trainer(tmp_path / "before", max_steps=4).train()
    averaging = ema_cli.TrainerAverage(decay=DECAY)
    trainer = make_trainer(tmp_path / "other", averaging)
    trainer.train(resume_from_checkpoint=str(tmp_path / "before" / "checkpoint-4"))
    assert averaging.average.report is not None
    names = ["before/checkpoint-2", "before/checkpoint-4", "other/checkpoint-6"]
    assert [entry.path for entry in averaging.average.report.inputs] == [str(tmp_path / name) for name in names]


def test_a_callback_begins_anew_with_each_training(tmp_path: Path) -> None:
    """The second training with the same callback is averaged alone, although its checkpoints have the same names."""
    averaging = ema_cli.TrainerAverage(method="uniform")
    make_trainer(tmp_path, averaging).train()
    first = load(tmp_path / "ema" / "model.safetensors")
    trainer = make_trainer(tmp_path, averaging, learning_rate=0.01)
    trainer.train()
    second = load(tmp_path / "ema" / "model.safetensors")
    expected = {name: sum(trainer.seen[step - 1][name] for step in STEPS) / 3 for name in trainer.seen[0]}
    assert_weights({name: second[name] for name in expected}, expected)
    assert not torch.equal(first["transformer.wte.weight"], second["transformer.wte.weight"])


@pytest.mark.parametrize("reason", ["nothing was saved", "the output is foreign", "a bug"])
def test_an_error_does_not_end_the_training(
    reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the average cannot be made, the training ends as usual, and the reason is logged."""
    expected = {
        "nothing was saved": "saved none",
        "the output is foreign": "already exists",
        "a bug": "ZeroDivisionError",
    }[reason]
    if reason == "the output is foreign":
        (tmp_path / "ema").mkdir()
        (tmp_path / "ema" / "thesis.txt").write_text("years of work")
    if reason == "a bug":
        monkeypatch.setattr("ema_cli.training.callbacks.run_average.run_average", lambda *_, **__: 1 / 0)
    saving = "no" if reason == "nothing was saved" else "steps"
    trainer = make_trainer(tmp_path, ema_cli.TrainerAverage(decay=DECAY), save_strategy=saving)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 6
    assert "the checkpoints were not averaged" in caplog.text
    assert expected in caplog.text
    if reason == "the output is foreign":
        assert names_in(tmp_path / "ema") == {"thesis.txt"}


@pytest.mark.parametrize("make", [ema_cli.TrainerAverage, ema_cli.TrainerEMA])
def test_contradictions_are_refused_at_once(make: Any) -> None:
    """A callback that could only fail later is refused where it is made, with keywords in the message."""
    for options, expected in {
        ("decay", "half_life"): "half_life",
        (): "decay",
    }.items():
        with pytest.raises(ema_cli.EmaAvgError, match=expected):
            make(**dict.fromkeys(options, 0.5))
    with pytest.raises(TypeError, match="deccay"):
        make(deccay=0.5)


def test_a_missing_framework_is_named() -> None:
    """Without the frameworks the package and the classes can be imported; using one names what to install."""
    code = """
import sys
sys.modules.update(dict.fromkeys(["transformers", "lightning", "pytorch_lightning"]))
import ema_cli
for name in ("TrainerAverage", "TrainerEMA", "LightningAverage", "LightningEMA"):
    try:
        getattr(ema_cli, name)(decay=0.9)
    except ema_cli.EmaAvgError as error:
        print(error, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, name in zip(lines, ("TrainerAverage", "TrainerEMA", "LightningAverage", "LightningEMA"), strict=True):
        assert line.startswith(f"{name} cannot be used")
        assert ("pip install 'transformers" if "Trainer" in name else "pip install lightning") in line
