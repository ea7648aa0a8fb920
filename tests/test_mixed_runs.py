"""Checkpoints of several runs that look like one series are never averaged without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.errors import InputRefused
from tests.helpers.series import write_one


def warnings_of(folder: Path, names: str, steps: tuple[int, ...] = (), **options: Any) -> list[str]:
    """Write checkpoints, and return the codes of the warnings about them when they are named in this order."""
    inside = steps or (None,) * len(names.split())
    paths = [
        write_one(folder / f"{name}.pt", n, **({} if step is None else {"global_step": step}))
        for n, (name, step) in enumerate(zip(names.split(), inside, strict=True))
    ]
    return [one.code for one in ema_cli.plan(paths, decay=0.5, init="first", **options).warnings]


MIXED = [
    "resnet_step_200 resnet_step_400 student_step_300 student_step_500",
    "version_0/step_200 version_0/step_400 version_1/step_300 version_1/step_500",
    "a/m-100 a/m-300 b/m-200 b/m-400",
    "pretrain_100 pretrain_200 finetune_50 finetune_150",
    "stage1_step100 stage1_step200 stage2_step50 stage2_step150",
    "step100_rank0 step200_rank1 step300_rank0",
    "seed1/step_100 seed1/step_200 seed2/step_150 seed2/step_250",
    "lr1e-3_step_100 lr1e-3_step_200 lr1e-4_step_150 lr1e-4_step_250",
    "x1/epoch_1 x1/epoch_3 x2/epoch_2 x2/epoch_4",
    "step_100 step_200 step_300 step_150_pruned",
    "step_100 step_200 crash_step_300",
    "pretrain_step1000 pretrain_step2000 finetune_step100 finetune_step200",
    "warmup-step_1 warmup-step_2 train-step_3 train-step_4 train-step_5",
    "run1_step1000 run1_step2000 run2_step100 run2_step200",
    "version_0/epoch=8 version_0/epoch=9 version_1/epoch=0 version_1/epoch=1",
    "phase1/step_50 phase1/step_60 phase2/step_10 phase2/step_20 phase2/step_30",
]


@pytest.mark.parametrize("names", MIXED)
def test_steps_of_two_runs_that_interleave_are_reported(tmp_path: Path, names: str) -> None:
    """Although all steps differ; whoever gives the order by hand knows better."""
    assert warnings_of(tmp_path, names) == ["runs-mixed"]
    assert warnings_of(tmp_path, names, order="given") in ([], ["order-against-steps"])


ONE_RUN = [
    "a/step_100 a/step_200 b/step_300 b/step_400",
    "version_0/epoch=1-step=100 version_0/epoch=2-step=200 version_1/epoch=3-step=300 version_1/epoch=4-step=400",
    "checkpoint_1_100 checkpoint_1_200 checkpoint_2_300 checkpoint_2_400",
    "step100_acc91 step200_acc90 step300_acc91 step400_acc90",
    "step100-tokens4B step200-tokens4B step300-tokens8B",
    "rank1_epoch=12 rank2_epoch=10 rank3_epoch=11",
    "checkpoint-100/model_100 checkpoint-200/model_200",
    "run3_step_100 run3_step_200",
    "ckpt_100_2.31 ckpt_200_2.30 ckpt_300_2.31 ckpt_400_2.30",
    "run1_step100 run1_step200 run2_step300 run2_step400",
    "bs64_step_100 bs64_step_200 bs32_step_300 bs32_step_400",
    "Step_100 step-200 step_300 Step-400",
    "100_net 200_net 300_net 400_net",
    "warmup-step_1 train-step_3 train-step_4",
]


@pytest.mark.parametrize("names", ONE_RUN)
def test_one_run_is_silent(tmp_path: Path, names: str) -> None:
    """A run that was continued elsewhere, epochs, results, and whatever else differs with the step."""
    assert warnings_of(tmp_path, names) == []


def test_a_clock_inside_joins_two_kinds_of_files_but_not_two_folders(tmp_path: Path) -> None:
    """One trainer saves by epoch and by batch; it does not save the same kind of files in two folders."""
    two_kinds = "epoch-1 epoch-2 checkpoint-4000 checkpoint-5000"
    assert warnings_of(tmp_path / "one", two_kinds, (3000, 6000, 4000, 5000)) == []
    two_folders = "a/m-100 a/m-300 b/m-200 b/m-400"
    assert warnings_of(tmp_path / "two", two_folders, (100, 300, 200, 400)) == ["runs-mixed"]


def test_a_folder_with_two_runs_is_reported(tmp_path: Path) -> None:
    """Also where nobody named the files; a mean has no order, and may be one of two runs."""
    assert warnings_of(tmp_path, MIXED[0])
    assert [one.code for one in ema_cli.plan(tmp_path, decay=0.5, init="first").warnings] == ["runs-mixed"]
    assert not ema_cli.plan(tmp_path, method="uniform").warnings


def write_two_models(folder: Path, model: str, average: str) -> None:
    """Write three checkpoints of a model, and three averages of another one."""
    for step in (100, 200, 300):
        for name, size in ((model, 3), (average, 5)):
            path = folder / name.format(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"layer.weight": torch.full((4, size), float(step)), "layer.bias": torch.ones(4)}, path)


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("D_{}.pt", "G_ema_{}.pt"),
        ("step_{}/discriminator.pt", "step_{}/generator_ema.pt"),
        ("checkpoint-{}/vae.pt", "checkpoint-{}/ema.pt"),
    ],
)
def test_a_model_beside_the_averages_of_another_one_is_not_taken_for_it(
    tmp_path: Path, model: str, average: str
) -> None:
    """Their tensors show it; both are proposed, and whoever names one, or a key, has chosen."""
    write_two_models(tmp_path / "run", model, average)
    with pytest.raises(InputRefused, match="holds several models") as refused:
        ema_cli.plan(tmp_path / "run", decay=0.5)
    patterns = [f"{tmp_path / 'run'}/{name.format('*')}" for name in (model, average)]
    assert [one.changes["paths"] for one in refused.value.proposals] == [(pattern,) for pattern in patterns]
    for pattern in patterns:
        assert len(ema_cli.plan(pattern, decay=0.5).checkpoints) == 3
    assert len(ema_cli.plan(tmp_path / "run", key=".", decay=0.5).checkpoints) == 3


@pytest.mark.parametrize("average", ["G_ema_{}.pt", "swa-{}.pt"])
def test_averages_of_the_series_are_skipped(tmp_path: Path, average: str) -> None:
    """Also those of a part of its tensors, those that cannot be read, and a single one of whatever model."""
    write_two_models(tmp_path, "D_{}.pt", average)
    for step in (100, 200, 300):
        torch.save({"module.layer.weight": torch.ones(4, 3)}, tmp_path / average.format(step))
    torch.save({"other": torch.ones(6, 6)}, tmp_path / "ema.pt")
    (tmp_path / "avg_400.pt").write_bytes(b"no checkpoint")
    assert [one.path.name for one in ema_cli.plan(tmp_path, decay=0.5).checkpoints] == [
        f"D_{step}.pt" for step in (100, 200, 300)
    ]


def test_averages_beside_tensors_that_cannot_be_read_are_not_another_model(tmp_path: Path) -> None:
    """The refusal is that of the tensors, whose shapes are not compared."""
    for step in (100, 200):
        torch.save({"layer.weight": torch.ones(4, 3).to_sparse()}, tmp_path / f"D_{step}.pt")
        torch.save({"layer.weight": torch.ones(4, 3)}, tmp_path / f"ema_{step}.pt")
    with pytest.raises(InputRefused, match="is a sparse tensor"):
        ema_cli.plan(tmp_path, decay=0.5)
