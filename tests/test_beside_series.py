"""Files and folders beside a numbered series: ``final``, ``best``, ``ema``, ``init``, links, copies, trainer state."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputRefused
from ema_cli.formats import series_names
from ema_cli.formats.series_names import split_names
from ema_cli.name_numbers import name_form
from tests.helpers.folders import write_folder
from tests.helpers.found import find, names_of, skipped
from tests.helpers.program import Run
from tests.helpers.series import load, reference_average, write_one

SERIES = ("epoch_1.pt", "epoch_2.pt", "epoch_10.pt")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the checkpoints of the epochs 1, 2 and 10, each with its step inside."""
    for number in (1, 2, 10):
        write_one(tmp_path / "run" / f"epoch_{number}.pt", number, step=100 * number)
    return tmp_path / "run"


def order(run: Path) -> list[str]:
    """Return the names of the checkpoints in fold order, from a plan without warnings."""
    plan = ema_cli.plan(run, method="uniform")
    assert not [warning.code for warning in plan.warnings if warning.code != "plain-mean"]
    return [checkpoint.path.name for checkpoint in plan.checkpoints]


AVERAGES = "ema.pt swa_5.pt valid.acc.ave_10best.pt epoch-10-avg-2.pt avg_10.pt model_averaged.pt"
STARTS = "init.pt model-initial.pt pretrained.pt backup_2.pt epoch_2.bak.pt recovery-0-100.pt"


@pytest.mark.parametrize("name", [*AVERAGES.split(), *STARTS.split()])
def test_averages_and_starts_are_skipped_whatever_step_is_inside(name: str, run: Path) -> None:
    """They are not checkpoints of the series; the reason says what their name says. The others stay as they were."""
    write_one(run / name, 99, step=5000)
    found = find(run)
    assert names_of(found) == list(SERIES)
    assert skipped(found)[name].startswith("its name says that it is ")
    assert not found.warnings
    assert order(run) == list(SERIES)


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "final.pt", "model_final.pt", "best_272.pt", "checkpoint.pt"])
@pytest.mark.parametrize(("step", "place"), [(50, 0), (150, 1), (2720, 3)])
def test_a_step_that_no_member_has_gives_a_file_its_place(name: str, step: int, place: int, run: Path) -> None:
    """The step inside orders it among the numbered ones, first, between them, or last."""
    write_one(run / name, 99, step=step)
    expected = list(SERIES)
    expected.insert(place, name)
    assert order(run) == expected


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "final.pt", "best_10.pt", "checkpoint.pt"])
def test_the_step_of_a_member_makes_a_file_a_copy(name: str, run: Path) -> None:
    """Even with other weights: a trainer may have saved it with another precision. Only the series is averaged."""
    write_one(run / name, 99, step=1000)
    found = find(run)
    assert names_of(found) == list(SERIES)
    assert skipped(found) == {name: 'a copy of "epoch_10.pt": the same step inside'}
    assert not found.warnings


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "final.pt", "best_272.pt", "checkpoint.pt"])
def test_without_a_step_a_file_is_skipped(name: str, run: Path) -> None:
    """A file with other weights is skipped for want of a step, one with the weights of a member as its copy."""
    write_one(run / name, 99)
    assert "no step inside gives it a place" in skipped(find(run))[name]
    write_one(run / name, 2)
    assert skipped(find(run))[name] == 'a copy of "epoch_2.pt": the same weights'
    assert order(run) == list(SERIES)


def test_a_step_of_another_kind_gives_no_place(run: Path) -> None:
    """An epoch cannot be compared with steps, nor a step that is the same in every member."""
    write_one(run / "last.pt", 99, epoch=11)
    assert "no step inside" in skipped(find(run))["last.pt"]
    for number in (1, 2, 10):
        write_one(run / f"epoch_{number}.pt", number, step=7)
    write_one(run / "last.pt", 99, step=9)
    assert "no step inside" in skipped(find(run))["last.pt"]


def test_steps_that_begin_again_are_compared_with_their_epochs(tmp_path: Path) -> None:
    """A step inside its epoch, 950, 30, 500, is equal only in the same epoch."""
    for epoch, step in ((1, 950), (2, 30), (3, 500)):
        write_one(tmp_path / f"ckpt_{epoch}.pt", epoch, epoch=epoch, step=step)
    write_one(tmp_path / "last.pt", 4, epoch=4, step=30)
    write_one(tmp_path / "best.pt", 2, epoch=2, step=30)
    found = find(tmp_path)
    assert names_of(found) == ["ckpt_1.pt", "ckpt_2.pt", "ckpt_3.pt", "last.pt"]
    assert skipped(found) == {"best.pt": 'a copy of "ckpt_2.pt": the same step inside'}


def test_a_step_in_the_name_counts_where_none_is_inside(tmp_path: Path) -> None:
    """``step=19-last`` is the newest checkpoint, ``step=9-last`` a copy: a word marks the number."""
    for name in ("m--step=4.ckpt", "m--step=9.ckpt", "m--step=9-last.ckpt", "m--step=19-last.ckpt"):
        torch.save({"w": torch.randn(2)}, tmp_path / name)
    found = find(tmp_path)
    assert names_of(found) == ["m--step=4.ckpt", "m--step=9.ckpt", "m--step=19-last.ckpt"]
    assert set(skipped(found)) == {"m--step=9-last.ckpt"}


EXTRAS = "crash_step_900 step_400_finetuned step_150_emawts old_step_150 tmp_step_150 step_800.tmp step_400_soup"


@pytest.mark.parametrize("extra", [*EXTRAS.split(), "Copy of step_150", "m-merged_step_150"])
def test_a_name_like_no_other_is_beside_the_series(tmp_path: Path, extra: str) -> None:
    """A word for steps does not make it a member; a step inside that no member has does, unless it is no checkpoint."""
    for step in (100, 200, 300):
        write_one(tmp_path / f"step_{step}.pt", step)
    write_one(tmp_path / f"{extra}.pt", 99)
    assert names_of(find(tmp_path)) == ["step_100.pt", "step_200.pt", "step_300.pt"]
    assert set(skipped(find(tmp_path))) == {f"{extra}.pt"}


def test_a_name_like_no_other_is_placed_by_its_step(run: Path) -> None:
    """What a trainer saved under another name, with a step of its own."""
    write_one(run / "crash_epoch_3.pt", 99, step=300)
    assert order(run) == ["epoch_1.pt", "epoch_2.pt", "crash_epoch_3.pt", "epoch_10.pt"]


@pytest.mark.parametrize("name", ["last-v1.ckpt", "epoch_11-v1.pt"])
def test_a_version_is_of_another_run(run: Path, name: str) -> None:
    """Lightning numbers a file if there is one of that name that this run did not write: its step gives no place."""
    write_one(run / name, 99, step=1100)
    assert order(run) == list(SERIES)
    assert "of another run" in skipped(find(run))[name]


def test_other_tensors_are_no_member(run: Path) -> None:
    """A file of another model beside the series is skipped, whatever its step."""
    torch.save({"model": {"other": torch.ones(3)}, "step": 5000}, run / "teacher.pt")
    assert "its tensors are not those" in skipped(find(run))["teacher.pt"]


def test_links_to_members_are_skipped(run: Path) -> None:
    """Symbolic and hard links are the same file, whatever their names; a numbered link gives way to the file."""
    (run / "latest.pt").symlink_to("epoch_10.pt")
    (run / "a_best_3.pt").symlink_to("epoch_2.pt")
    (run / "a_1.pt").symlink_to("epoch_1.pt")
    (run / "epoch_0.pt").symlink_to("epoch_1.pt")
    os.link(run / "epoch_10.pt", run / "kept.pt")
    found = find(run)
    assert names_of(found) == list(SERIES)
    reasons = skipped(found)
    assert reasons["latest.pt"] == reasons["kept.pt"] == 'a link to "epoch_10.pt"'
    assert reasons["a_best_3.pt"] == 'a link to "epoch_2.pt"'
    assert reasons["a_1.pt"] == 'a link to "epoch_1.pt"'
    assert reasons["epoch_0.pt"] == f'the same file as "{run / "epoch_1.pt"}"'
    assert not found.warnings


def test_links_to_other_folders_are_members(run: Path, tmp_path: Path) -> None:
    """A series of links into a scratch disk is read; a link to a file that is gone is listed: the hole can be seen."""
    (tmp_path / "links").mkdir()
    for name in (*SERIES, "epoch_11.pt", "epoch_12"):
        (tmp_path / "links" / name).symlink_to(run / name)
    found = find(tmp_path / "links")
    assert names_of(found) == list(SERIES)
    assert skipped(found) == dict.fromkeys(["epoch_11.pt", "epoch_12"], "a link to a file that is gone")
    assert not found.warnings


def test_a_second_save_of_one_step_is_skipped_if_it_is_equal(run: Path) -> None:
    """Two callbacks save one step under two numbered names; with other weights these are two runs, and refused."""
    write_one(run / "checkpoint-1000.pt", 10, step=1000)
    found = find(run)
    assert len(found.checkpoints) == 3
    assert skipped(found) == {"epoch_10.pt": 'a copy of "checkpoint-1000.pt": the same step and weights inside'}
    write_one(run / "checkpoint-1000.pt", 99, step=1000)
    assert len(find(run).checkpoints) == 4
    with pytest.raises(InputRefused, match="same step"):
        ema_cli.plan(run, decay=0.5)


def test_unchanged_weights_at_another_step_are_a_checkpoint(tmp_path: Path) -> None:
    """A numbered checkpoint counts although nothing was learned since the last."""
    for number in (1, 2):
        write_one(tmp_path / f"ckpt_{number}.pt", 1, step=number)
    assert len(find(tmp_path).checkpoints) == 2


def test_averages_with_numbers_are_skipped_beside_raw_ones(tmp_path: Path, ema_avg: Run) -> None:
    """``model010000``, ``ema_0.9999_010000`` and ``opt010000`` side by side: the raw weights are averaged, silently."""
    for step in (10000, 20000):
        for rate, name in ((1, "model"), (100, "ema_0.9999_")):
            torch.save({"w": torch.full((2,), float(rate * step))}, tmp_path / f"{name}{step:06}.pt")
        state = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
        torch.save(state, tmp_path / f"opt{step:06}.pt")
    done = ema_avg(".", "--method", "uniform", "--strict", "-o", "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "o.safetensors")["w"].tolist() == [15000, 15000]
    assert "opt010000.pt" in done.stderr
    assert "holds no weights" in done.stderr


def test_averages_alone_are_a_series(tmp_path: Path) -> None:
    """Without raw numbered files, they are what there is; a file without a number does not join them."""
    for step in (10, 20):
        write_one(tmp_path / f"ema_0.9999_{step:06}.pt", step)
    write_one(tmp_path / "model.pt", 3)
    found = find(tmp_path)
    assert names_of(found) == ["ema_0.9999_000010.pt", "ema_0.9999_000020.pt"]
    assert "beside numbered averages" in skipped(found)["model.pt"]


def test_a_folder_of_files_without_weights_is_refused(tmp_path: Path, ema_avg: Run) -> None:
    """The state of a trainer is skipped quietly only beside checkpoints; otherwise the reason is the error."""
    for number in (1, 2):
        torch.save({"param_groups": []}, tmp_path / f"state_{number}.pt")
    with pytest.raises(InputRefused, match="no state dict found"):
        find(tmp_path)
    assert ema_avg("plan", "state_1.pt").returncode == 3


def test_folders_are_placed_like_files(tmp_path: Path) -> None:
    """``best`` and ``final`` with the step of a member are copies, with one of their own they are members."""
    for step in (100, 200):
        write_folder(tmp_path / f"checkpoint-{step}", step, value=float(step))
    write_folder(tmp_path / "best", 100, value=100.0)
    write_folder(tmp_path / "final", 250, value=250.0)
    write_folder(tmp_path / "swa", 300)
    write_folder(tmp_path / "last", value=7.0)
    (tmp_path / "latest").symlink_to("checkpoint-200")
    found = find(tmp_path)
    assert names_of(found) == ["checkpoint-100", "checkpoint-200", "final"]
    assert set(skipped(found)) == {"best", "swa", "last", "latest"}
    assert skipped(found)["latest"] == 'a link to "checkpoint-200"'
    assert order(tmp_path) == ["checkpoint-100", "checkpoint-200", "final"]


def test_named_files_are_used_as_they_are(run: Path) -> None:
    """What the command line names takes part, as does what a shell expands."""
    for name in ("init.pt", "ema.pt"):
        write_one(run / name)
    assert names_of(find(*sorted(run.iterdir()))) == sorted([*SERIES, "init.pt", "ema.pt"])


def test_a_toolkit_folder_is_averaged_silently(tmp_path: Path, ema_avg: Run) -> None:
    """Numbered epochs, the toolkit's own average, links, and its state with a copy of the last epoch."""
    states = [{"w": torch.randn(8)} for _ in range(11)]
    for number, state in enumerate(states, 1):
        torch.save(state, tmp_path / f"{number}epoch.pth")
    torch.save({"model": states[-1], "reporter": {"x": 1}, "optimizers": [{"state": {}}]}, tmp_path / "checkpoint.pth")
    torch.save({"w": sum(state["w"] for state in states) / 11}, tmp_path / "valid.acc.ave_10best.pth")
    links = {"valid.acc.ave": "valid.acc.ave_10best", "valid.acc.best": "8epoch", "latest": "11epoch"}
    for link, target in links.items():
        (tmp_path / f"{link}.pth").symlink_to(f"{target}.pth")
    done = ema_avg(".", "--method", "uniform", "--last", "5", "--strict", "-o", "o.safetensors")
    assert done.returncode == 0, done.stderr
    reference = reference_average([state["w"] for state in states[-5:]], [0.2] * 5)
    assert torch.equal(load(tmp_path / "o.safetensors")["w"], torch.from_numpy(reference).float())
    assert done.stderr.count("skipped") == 5
    assert 'checkpoint.pth": a copy of "11epoch.pth"' in done.stderr


def test_an_own_output_is_known_among_the_averages(run: Path) -> None:
    """``ema.safetensors`` with its report may be written again; a foreign average of that name may not."""
    for _ in range(2):
        ema_cli.average(run, decay=0.5, output=run / "ema.safetensors", force=True)
        assert skipped(find(run)) == {"ema.safetensors": "an output of ema-avg"}
    save_file({"w": torch.ones(2)}, run / "ema.safetensors")
    assert "an average" in skipped(find(run))["ema.safetensors"]


@pytest.mark.parametrize(
    ("names", "series", "beside"),
    [
        ("epoch=1-avg_loss=0.3.ckpt epoch=2-avg_loss=0.2.ckpt last.ckpt", 2, "last.ckpt"),
        ("best-epoch=3.ckpt best-epoch=7.ckpt", 2, ""),
        ("best_1.pt step_1.pt step_2.pt", 2, "best_1.pt"),
        ("mine_v2-000001.safetensors mine_v2-000002.safetensors mine_v2.safetensors", 2, "mine_v2.safetensors"),
        ("resnet50.pt best.pt last.pt", 3, ""),
        ("final_run_1.pt final_run_2.pt", 2, ""),
        ("best.pt last.pt", 2, ""),
        ("ckpt_1.pt model.pt", 1, "model.pt"),
        ("ema.pt", 1, ""),
        ("model.pt ema.pt init.pt", 1, ""),
        ("rwkv-0.pth rwkv-5.pth rwkv-init.pth rwkv-final.pth", 2, "rwkv-final.pth"),
        ("checkpoint1.pt checkpoint2.pt checkpoint.best_loss_3.41.pt", 2, "checkpoint.best_loss_3.41.pt"),
    ],
)
def test_names_are_split(names: str, series: int, beside: str) -> None:
    """The numbered series comes first; words that all numbered names share decide nothing."""
    split = split_names(names.split())
    assert len(split.series) == series
    assert " ".join(split.beside) == beside
    assert len(split.series) + len(split.beside) + len(split.skipped) == len(names.split())


def test_the_names_of_a_long_run_are_split_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often a name is looked at does not depend on how many there are."""
    stems: Counter[str] = Counter()
    stem_of = series_names._stem

    def counted(name: str) -> str:
        stems[name] += 1
        return stem_of(name)

    forms = Mock(side_effect=name_form)
    monkeypatch.setattr(series_names, "_stem", counted)
    monkeypatch.setattr(f"{split_names.__module__}.name_form", forms)
    names = [*(f"step_{step}.pt" for step in range(1000)), "crash_step_7.pt", "step_5_final.pt"]
    split = split_names(names)
    assert split.series == tuple(names[:1000])
    assert split.beside == ("crash_step_7.pt", "step_5_final.pt")
    assert max(stems.values()) < 20
    assert forms.call_count <= len(names)
