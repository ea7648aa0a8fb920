"""Checkpoint folders on the command line: what is one checkpoint, what is a run of them, what is skipped."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.events import Event, Opening
from ema_cli.options.average import make_options
from ema_cli.records.series import FoundStep
from tests.helpers.folders import write_folder
from tests.helpers.found import find, names_of, skipped
from tests.helpers.series import open_files, write_one


@pytest.mark.parametrize(
    "form", ["checkpoint-{}", "step-{}", "iter_{:07}", "global_step{}", "epoch_{}", "epoch=1-step={}.ckpt", "{}"]
)
def test_numbered_checkpoint_folders_are_a_run(form: str, tmp_path: Path) -> None:
    """A folder of them is searched, in natural order; single folders and patterns work, too."""
    names = [form.format(number) for number in (5, 10, 200)]
    for name in names:
        write_folder(tmp_path / "run" / name)
    for other in (
        "runs",
        "optimizer_0",
        ".hidden-checkpoint-7",
        "checkpoint-300.partial",
        "tmp-checkpoint-400",
        "logs",
    ):
        write_folder(tmp_path / "run" / other)
    (tmp_path / "run" / form.format(4000)).mkdir()  # empty
    assert names_of(find(tmp_path / "run")) == names
    assert names_of(find(*(f"{tmp_path}/run/{name}/" for name in names))) == names
    assert names_of(find(f"{tmp_path}/run/{form.format(5)}")) == names[:1]
    assert set(skipped(find(tmp_path / "run"))) == {form.format(4000)}
    (warning,) = find(tmp_path / "run").warnings
    assert (warning.code, form.format(4000) in warning.message) == ("unusable-left-out", True)


def test_the_final_weights_of_a_run_are_skipped(tmp_path: Path) -> None:
    """``Trainer.save_model`` puts a copy of the last checkpoint into the run, whole or in shards."""
    for step in (500, 1000):
        write_folder(tmp_path / f"checkpoint-{step}", step)
    write_folder(tmp_path, 1000)
    save_file({"w": torch.zeros(2)}, tmp_path / "training_args.bin")
    write_folder(tmp_path / "final")
    found = find(tmp_path)
    assert names_of(found) == ["checkpoint-500", "checkpoint-1000"]
    assert set(skipped(found)) == {"model.safetensors", "training_args.bin", "final"}
    assert "its name suggests a copy" in skipped(found)["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    for number in (1, 2):
        write_folder(tmp_path, file=f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert set(skipped(find(tmp_path))) == {"model.safetensors.index.json", "training_args.bin", "final"}


def test_files_and_folders_are_one_run(tmp_path: Path) -> None:
    """Both are taken; files without a number are skipped next to numbered folders."""
    write_folder(tmp_path / "step-1")
    write_one(tmp_path / "step-2.pt")
    write_one(tmp_path / "weights.pt")
    write_one(tmp_path / "last.ckpt", step=1)
    found = find(tmp_path)
    assert names_of(found) == ["step-1", "step-2.pt"]
    assert set(skipped(found)) == {"weights.pt", "last.ckpt"}


def test_what_is_named_like_a_member_is_never_passed_over(tmp_path: Path) -> None:
    """Another suffix, none, an unfinished save, a folder: in the series, or listed, most with a warning."""
    for name in ("m-100.pt", "m-200.pt", "m-300", "m-400.pkl", "m-500/model.pt"):
        write_one(tmp_path / name)
    (tmp_path / "m-600.pt.part").write_bytes(b"PK")
    (tmp_path / "m-700").mkdir()
    for name in ("m-100.json", "m-250.png", "m-260.log", "other-800"):
        (tmp_path / name).write_text("no checkpoint")
    found = find(tmp_path)
    assert {path.path.relative_to(tmp_path).parts[0] for path in found.checkpoints} == {"m-100.pt", "m-200.pt", "m-500"}
    assert set(skipped(found)) == {"m-300", "m-400.pkl", "m-600.pt.part", "m-700"}
    told = zip(found.warnings, ('"m-700"', "m-300", "m-400.pkl"), strict=True)
    assert [(one.code, name in one.message) for one, name in told] == [("unusable-left-out", True)] * 3


def test_incomplete_folders_are_skipped_in_a_run_and_refused_by_name(tmp_path: Path) -> None:
    """A trainer that was stopped leaves folders without metadata, with missing shards, or without weights."""
    for step in (500, 1000):
        write_folder(tmp_path / f"checkpoint-{step}", step)
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    incomplete = {
        "checkpoint-1500": ("model.safetensors.index.json", json.dumps(index)),
        "checkpoint-2000": ("__0_0.distcp", ""),
        "checkpoint-2500": ("optimizer.pt", ""),
        "checkpoint-3000": ("model.safetensors", ""),
    }
    for name, (file, text) in incomplete.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    found = find(tmp_path)
    assert names_of(found) == ["checkpoint-500", "checkpoint-1000"]
    assert [warning.code for warning in found.warnings] == ["unusable-left-out"] * 4
    for warning, name in zip(found.warnings, incomplete, strict=True):
        assert name in warning.message
        with pytest.raises((InputRefused, NothingMatched), match=name):
            find(tmp_path / name)
    with pytest.raises(InputRefused) as refused:
        find(tmp_path / "checkpoint-500", tmp_path / "checkpoint-1500", tmp_path / "checkpoint-2000")
    assert refused.value.message.startswith("2 inputs cannot be used:")


def test_a_run_of_incomplete_folders_says_why(tmp_path: Path) -> None:
    """When none is usable, the error lists all reasons."""
    for step in (1, 2):
        write_folder(tmp_path / f"step-{step}", file="model-00001-of-00002.safetensors")
    with pytest.raises(InputRefused, match="2 inputs cannot be used") as refused:
        find(tmp_path)
    assert "it has 1 of 2 shards" in refused.value.message


def test_shards_next_to_numbered_files_are_skipped(tmp_path: Path) -> None:
    """A final model in shards does not make a folder of numbered files one checkpoint."""
    for name in ("ckpt_1.pt", "ckpt_2.pt", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        write_one(tmp_path / name)
    found = find(tmp_path)
    assert names_of(found) == ["ckpt_1.pt", "ckpt_2.pt"]
    assert set(skipped(found).values()) == {"one shard of a model, beside complete checkpoints"}


@pytest.mark.parametrize(
    ("form", "unit"),
    [("checkpoint-{}", "step"), ("iter_{:07}", "step"), ("global_step{}", "step"), ("epoch_{}", "epoch")],
)
@pytest.mark.parametrize("part", ["", "unet"])
def test_steps_are_read_from_the_names_of_folders(form: str, unit: str, part: str, tmp_path: Path) -> None:
    """Without a step inside, the folder's name gives it, also if the checkpoint is in a folder below."""
    for number in (10, 5, 1000):
        write_folder(tmp_path / form.format(number) / part)
    plan = ema_cli.plan([f"{tmp_path}/*/{part}"], decay=0.5)
    steps = [member.step for member in plan.series.members]
    assert steps == [FoundStep(value=number, unit=unit, source="name") for number in (5, 10, 1000)]


def test_steps_inside_come_before_names(tmp_path: Path) -> None:
    """A folder may have been renamed; the step that the trainer wrote counts."""
    for number, step in ((1, 300), (2, 200), (3, 100)):
        write_folder(tmp_path / f"checkpoint-{number}", step)
    members = ema_cli.plan([tmp_path], decay=0.5).series.members
    assert [member.checkpoint.path.name for member in members] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    assert members[0].step == FoundStep(value=100, unit="step", source="inside: trainer_state.json")


def test_a_folder_inside_a_checkpoint_is_part_of_it(tmp_path: Path) -> None:
    """DeepSpeed's folder in a checkpoint of the trainer does not make the checkpoint a run."""
    write_folder(tmp_path / "checkpoint-500", 500)
    inner = tmp_path / "checkpoint-500" / "global_step500"
    inner.mkdir()
    states = "mp_rank_00_model_states.pt"
    torch.save({"module": {"w": torch.zeros(2)}}, inner / states)
    assert names_of(find(tmp_path / "checkpoint-500")) == ["checkpoint-500"]
    assert names_of(find(tmp_path)) == ["checkpoint-500"]
    write_folder(tmp_path / "ds")  # joined by zero_to_fp32.py, next to the checkpoints of DeepSpeed itself
    for step in (1, 2):
        (tmp_path / "ds" / f"global_step{step}").mkdir()
        torch.save({"module": {"w": torch.zeros(2)}}, tmp_path / "ds" / f"global_step{step}" / states)
    assert names_of(find(tmp_path / "ds")) == ["global_step1", "global_step2"]


def test_parts_of_pipelines_are_found_by_a_pattern(tmp_path: Path) -> None:
    """A run of pipelines is refused with the command that averages one part, and this command works."""
    for step in (5, 10):
        write_folder(tmp_path / f"checkpoint-{step}" / "unet", file="diffusion_pytorch_model.safetensors")
        (tmp_path / f"checkpoint-{step}" / "model_index.json").write_text("{}")
    with pytest.raises(InputRefused, match="is a pipeline of several models") as refused:
        find(tmp_path)
    (pattern,) = refused.value.proposals[0].changes["paths"]
    assert pattern == f"{tmp_path}/*/unet"
    found = find(pattern)
    assert [checkpoint.path.parent.name for checkpoint in found.checkpoints] == ["checkpoint-5", "checkpoint-10"]


def test_unnumbered_checkpoint_folders_are_pointed_at(tmp_path: Path) -> None:
    """Folders without numbers may be anything: parts, other models. They are skipped; the hint takes them all."""
    for name in ("a", "b"):
        write_folder(tmp_path / name)
    with pytest.raises(NothingMatched) as refused:
        ema_cli.plan(tmp_path, decay=0.5)
    reason, _, command = refused.value.hint.partition(": ")
    assert reason == "the folders inside contain checkpoints"
    program, plan, pattern, *_ = shlex.split(command)
    assert (program, plan) == ("ema-avg", "plan")
    assert names_of(find(pattern)) == ["a", "b"]


def test_a_folder_and_the_file_in_it_are_one_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that is given in two ways, through a link, or twice is folded once."""
    folder = write_folder(tmp_path / "checkpoint-500", 500)
    (tmp_path / "link").symlink_to(folder)
    for names in (
        [folder, folder / "model.safetensors"],
        [folder / "model.safetensors", folder],
        [folder, tmp_path / "link"],
    ):
        found = find(*names)
        assert [checkpoint.path for checkpoint in found.checkpoints] == names[:1]
        assert all("the same" in left.reason for left in found.skipped)


def test_a_checkpoint_that_was_rotated_away_is_skipped(tmp_path: Path) -> None:
    """A trainer that keeps the last few checkpoints deletes the oldest during the run."""
    for step in (1, 2, 3):
        write_folder(tmp_path / f"step-{step}")

    def rotate(event: Event) -> None:
        if isinstance(event, Opening) and event.done == 0:
            shutil.rmtree(tmp_path / "step-1")

    found = discover(make_options([tmp_path]), rotate)
    close_all(found.checkpoints)
    assert names_of(found) == ["step-2", "step-3"]
    assert [warning.code for warning in found.warnings] == ["unusable-left-out"]


def test_many_sharded_checkpoints_share_what_they_have_in_common(tmp_path: Path) -> None:
    """One layout for all checkpoints of a run, and no file of an incomplete one stays open."""
    for step in range(8):
        for number in (1, 2):
            file = f"model-0000{number}-of-00002.safetensors"
            write_folder(tmp_path / f"step-{step}", file=file)
            save_file({f"w{number}": torch.ones(2)}, tmp_path / f"step-{step}" / file)
    before = open_files()
    found = discover(make_options([tmp_path]))
    assert len({id(checkpoint.index.layouts) for checkpoint in found.checkpoints}) == 1
    close_all(found.checkpoints)
    assert open_files() == before
