"""Checkpoints one level deeper: in a folder inside each numbered one, in one folder below, several to choose from."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.batch.find_runs import find_runs
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched
from ema_cli.formats.folder import Folder
from tests.helpers.folders import write_folder, write_shards
from tests.helpers.found import find, skipped
from tests.helpers.program import Run
from tests.helpers.series import load, random_states, reference_average, same_bits, write_one

STEPS = (100, 200)


def model(folder: Path, step: int) -> None:
    """Write a model as ``save_pretrained`` does."""
    write_folder(folder, value=float(step))


def zip_file(folder: Path, step: int) -> None:
    """Write a file of torch as litgpt does, beside files that are no checkpoints."""
    write_one(folder / "lit_model.pth", float(step))
    (folder / "model_config.yaml").write_text("")
    (folder / "tokenizer.json").write_text("{}")


def with_state(folder: Path, step: int) -> None:
    """Write a model, and the state of the trainer beside its folder, as lerobot does."""
    model(folder, step)
    state = folder.parent / "training_state"
    state.mkdir()
    save_file({"state/0/exp_avg": torch.ones(2)}, state / "optimizer_state.safetensors")
    save_file({"torch_rng": torch.ones(2)}, state / "rng_state.safetensors")


def deepspeed(folder: Path, step: int) -> None:
    """Write a checkpoint of DeepSpeed as Lightning does."""
    folder.mkdir(parents=True)
    torch.save({"module": {"w": torch.full((2,), float(step))}}, folder / "mp_rank_00_model_states.pt")
    (folder.parent / "latest").write_text("checkpoint")
    (folder.parent / "zero_to_fp32.py").write_text("")


def adapter(folder: Path, step: int) -> None:
    """Write an adapter with a name, as PEFT does, beside the files of transformers' Trainer."""
    write_folder(folder, value=float(step), file="adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    torch.save({"state": {}}, folder.parent / "optimizer.pt")


def with_average(folder: Path, step: int) -> None:
    """Write raw weights with their average, and the state of the optimizer."""
    write_one(folder / "model.pt", float(step))
    write_one(folder / "ema.pt", 9.0)
    torch.save({"state": {}}, folder / "optimizer.pt")


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "0000{}/pretrained_model": with_state,
    "step-0{}": zip_file,
    "epoch=1-step={}.ckpt/checkpoint": deepspeed,
    "checkpoint-{}/policy": adapter,
    "run--loss=0.3-step={}/weights": model,
    "epoch_{}/model/consolidated": model,
    "ep0-ba{}": with_average,
    "iter_{}/weights": zip_file,
}


@pytest.mark.parametrize("form", LAYOUTS)
def test_the_one_checkpoint_of_each_numbered_folder_is_a_member(form: str, tmp_path: Path) -> None:
    """The run, its folders and the folder above are all that needs to be named; nothing is warned of."""
    for step in (*STEPS, 1000):
        LAYOUTS[form](tmp_path / "exp" / "run" / form.format(step), step)
    outer = form.partition("/")[0]
    folders = [tmp_path / "exp" / "run" / outer.format(step) for step in (*STEPS, 1000)]
    for names in ([folders[0].parent], folders, [f"{tmp_path}/exp/run/*/"], [tmp_path / "exp"], [tmp_path]):
        plan = ema_cli.plan(names, decay=0.5)
        steps = [member.step.value if member.step else None for member in plan.series.members]
        assert steps == [100, 200, 1000]
        assert {warning.code for warning in plan.warnings} <= {"first-dominates"}
    found = find_runs([str(tmp_path / "exp")])
    assert found.folders == (tmp_path / "exp" / "run",)
    assert not found.warnings


def test_final_beside_such_folders_is_placed_by_its_step(tmp_path: Path) -> None:
    """``final/lit_model.pth`` is never first for its name; with a step inside it is the last."""
    for step in STEPS:
        write_one(tmp_path / f"step-{step}" / "lit_model.pth", step)
    write_one(tmp_path / "final" / "lit_model.pth", 9.0)
    (tmp_path / "last").symlink_to("step-200")
    found = find(tmp_path)
    assert [one.path.parent.name for one in found.checkpoints] == ["step-100", "step-200"]
    assert {entry.path.parent.name for entry in found.skipped} == {"final", "last"}
    assert not find_runs([str(tmp_path)]).warnings
    for step, name in ((100, "step-100"), (200, "step-200"), (300, "final")):
        write_one(tmp_path / name / "lit_model.pth", step, iteration=step)
    members = ema_cli.plan(tmp_path, decay=0.5).checkpoints
    assert [one.path.parent.name for one in members] == ["step-100", "step-200", "final"]


def test_the_files_of_an_inner_model_are_copied(tmp_path: Path, ema_avg: Run) -> None:
    """A folder as the output gets the configuration from the inner folder of the last checkpoint."""
    for step in STEPS:
        model(tmp_path / "run" / f"00{step}" / "pretrained_model", step)
        (tmp_path / "run" / f"00{step}" / "pretrained_model" / "config.json").write_text(f'{{"step": {step}}}')
    done = ema_avg("run", "--method", "uniform", "--strict", "-o", "avg/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "avg" / "config.json").read_text() == '{"step": 200}'
    assert load(tmp_path / "avg" / "model.safetensors")["w"].tolist() == [150, 150]
    assert ema_avg("verify", "avg").returncode == 0


def test_a_named_folder_with_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    """What is named must be usable, as with any other checkpoint folder; in a run it is skipped with a warning."""
    for step in (*STEPS, 300):
        write_one(tmp_path / f"step-{step}" / "lit_model.pth", step)
    (tmp_path / "step-200" / "lit_model.pth").write_bytes(b"PK\3\4 unfinished")
    assert [warning.code for warning in find(tmp_path).warnings] == ["unusable-left-out"]
    with pytest.raises(InputRefused, match="step-200"):
        find(*(tmp_path / f"step-{step}" for step in (*STEPS, 300)))


# Several places


def hint_of(*names: Path | str) -> str:
    """Return the hint of the error that a plan of these names is refused with."""
    with pytest.raises(EmaAvgError) as refused:
        ema_cli.plan(names, decay=0.5)
    return refused.value.hint


def commands_in(hint: str) -> list[list[str]]:
    """Return the arguments of the commands in a hint."""
    commands = hint[hint.index("ema-avg") :].split("; or ")
    return [shlex.split(command)[2:] for command in commands]


def test_several_models_in_each_folder_are_listed_with_their_commands(tmp_path: Path) -> None:
    """Each command takes one model from all folders, and works."""
    names = ("critic", "generator")
    for step in STEPS:
        for name in names:
            write_one(tmp_path / "run" / f"step_{step}" / f"{name}.pt", step)
    commands = commands_in(hint_of(tmp_path / "run"))
    assert [command[0] for command in commands] == [f"{tmp_path}/run/step_*/{name}.pt" for name in names]
    for (pattern, *_), name in zip(commands, names, strict=True):
        assert {one.path.name for one in find(pattern).checkpoints} == {f"{name}.pt"}


def test_an_adapter_beside_the_model_is_a_choice(tmp_path: Path, ema_avg: Run) -> None:
    """The message of a run, of folders and of a mixture has a command for each; the index chooses the shards."""
    states = random_states(3)
    for step, state in zip((0, 1, 2), states, strict=True):
        write_shards(tmp_path / "run" / f"epoch_{step}", state)
        write_folder(tmp_path / "run" / f"epoch_{step}", file="adapter_model.safetensors")
        (tmp_path / "run" / f"epoch_{step}" / "config.json").write_text("{}")
    index, weights = "model.safetensors.index.json", "adapter_model.safetensors"
    hint = hint_of(tmp_path / "run")
    assert [command[0] for command in commands_in(hint)] == [
        f"{tmp_path}/run/epoch_*/{name}" for name in (index, weights)
    ]
    folders = [tmp_path / "run" / f"epoch_{step}" for step in (0, 1, 2)]
    chosen = [str(folder / index) for folder in folders]
    assert commands_in(hint_of(*folders))[0][:3] == chosen
    assert commands_in(hint_of(folders[0], *chosen[1:]))[0][:3] == chosen
    done = ema_avg(*chosen, "--method", "uniform", "-o", "avg/")
    assert done.returncode == 0, done.stderr
    output = load(tmp_path / "avg" / "model.safetensors")
    for name, value in output.items():
        reference = reference_average([state[name] for state in states], [1 / 3] * 3)
        assert same_bits(value, torch.from_numpy(reference).float().reshape(value.shape)), name
    assert (tmp_path / "avg" / "config.json").read_text() == "{}"
    assert ema_avg("verify", "avg").returncode == 0
    assert ema_avg("inspect", chosen[0]).returncode == 0
    assert ema_avg(*chosen, "--method", "uniform", "-o", "run/epoch_1/").returncode == 2
    alone = ema_avg("plan", "run/epoch_1", "--method", "uniform")
    assert alone.returncode == 3, alone.stderr
    assert f"ema-avg plan run/epoch_1/{index}" in alone.stderr.replace("\n", " ")


def test_a_missing_index_and_a_folder_of_its_name_are_no_index(tmp_path: Path) -> None:
    """A missing index is missing; the index of a lost shard is refused by name."""
    index = write_shards(tmp_path / "a", random_states(1)[0])
    with pytest.raises(NothingMatched):
        find(tmp_path / "b" / index.name)
    next(tmp_path.glob("a/*-00002-*")).unlink()
    with pytest.raises(InputRefused, match=r"index\.json.* is incomplete: 1 of 3 files"):
        find(index)


def test_two_models_with_their_own_series_are_a_choice(tmp_path: Path) -> None:
    """``G_100.pth`` and ``D_100.pth`` are never averaged with each other; each series has its command."""
    for step in STEPS:
        torch.save({"model": {"up.w": torch.ones(2)}, "iteration": step}, tmp_path / f"G_{step}.pth")
        torch.save({"model": {"conv.w": torch.ones(3)}, "iteration": step}, tmp_path / f"D_{step}.pth")
    commands = commands_in(hint_of(tmp_path))
    assert [command[0] for command in commands] == [f"{tmp_path}/{name}_*.pth" for name in "DG"]
    assert len(find(commands[0][0]).checkpoints) == 2


def test_a_file_beside_inner_folders_is_not_taken_for_the_model(tmp_path: Path) -> None:
    """A file of the data loader beside the folders of two models makes neither the checkpoint; both are listed."""
    for step in STEPS:
        write_one(tmp_path / f"global_step_{step}" / "data.pt", 1)
        for part in ("actor", "critic"):
            write_folder(tmp_path / f"global_step_{step}" / part, value=float(step))
    commands = commands_in(hint_of(tmp_path))
    assert [command[0] for command in commands] == [f"{tmp_path}/global_step_*/{name}" for name in ("actor", "critic")]
    assert len(find(commands[0][0]).checkpoints) == 2


def test_state_beside_the_model_does_not_matter(tmp_path: Path) -> None:
    """A folder that is called state of the trainer is not searched."""
    for step in STEPS:
        write_one(tmp_path / f"epoch_{step}" / "model.pt", step)
        write_one(tmp_path / f"epoch_{step}" / "recipe_state" / "recipe.pt", 1)
    assert [one.path.name for one in find(tmp_path).checkpoints] == ["model.pt", "model.pt"]


def test_runs_below_a_folder_are_never_mixed(tmp_path: Path) -> None:
    """Folders with a series each lead to ``ema-avg batch`` with them, and no pattern over them is proposed."""
    for run in ("a", "b"):
        for step in STEPS:
            write_one(tmp_path / run / f"ckpt_{step}.pt", step)
    hint = hint_of(tmp_path)
    assert hint.endswith(f"ema-avg batch {tmp_path / 'a'} {tmp_path / 'b'} --decay 0.5 --dry-run")
    assert "*" not in hint
    assert len(find_runs([str(tmp_path)]).folders) == 2


def test_one_series_among_other_folders_is_proposed(tmp_path: Path) -> None:
    """An exported model beside the folder of the checkpoints makes it a choice."""
    for step in STEPS:
        write_one(tmp_path / "checkpoints" / f"step_{step}.pt", step)
    write_folder(tmp_path / "export")
    assert [command[0] for command in commands_in(hint_of(tmp_path))] == [str(tmp_path / "checkpoints")]


def test_parts_of_checkpoints_are_never_proposed(tmp_path: Path) -> None:
    """Neither the layers of one step are averaged, nor one layer or one rank of each step proposed."""
    for step in STEPS:
        for number in range(3):
            write_one(tmp_path / "layers" / f"global_step{step}" / f"layer_{number:02}-model_00-model_states.pt")
            write_one(tmp_path / "ranks" / f"step_{step}" / "actor" / f"model_world_size_3_rank_{number}.pt", number)
    for name in ("layers", "layers/global_step100"):
        with pytest.raises(InputRefused, match="split by pipeline parallelism"):
            ema_cli.plan(tmp_path / name, decay=0.5)
    with pytest.raises(InputRefused, match="files of ranks that do not state how they fit together") as refused:
        ema_cli.plan(tmp_path / "ranks", decay=0.5)
    assert not refused.value.proposals


# Bounds


def test_three_levels_are_searched(tmp_path: Path) -> None:
    """A series three levels below the named folder is found, one level more is too deep."""
    for step in STEPS:
        write_one(tmp_path / "a" / "b" / "c" / "d" / f"ckpt_{step}.pt", step)
    assert len(find(tmp_path / "a").checkpoints) == 2
    with pytest.raises(NothingMatched):
        find(tmp_path)


def test_links_that_loop_end(tmp_path: Path) -> None:
    """Links to folders above are visited once, in the search as in a pattern for any depth."""
    for step in STEPS:
        write_one(tmp_path / "run" / "inner" / f"ckpt_{step}.pt", step)
    for name in ("run/a", "run/b", "run/inner/c"):
        (tmp_path / name).symlink_to(tmp_path / "run")
    (tmp_path / "run" / "self").symlink_to("self")
    assert len(find(tmp_path / "run").checkpoints) == 2
    found = find(f"{tmp_path}/run/**/*.pt")
    assert [one.path for one in found.checkpoints] == [tmp_path / f"run/inner/ckpt_{step}.pt" for step in STEPS]
    assert not skipped(found)


def test_a_large_tree_is_not_searched_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of folders that are listed in vain is bounded."""
    for a in range(20):
        for b in range(20):
            (tmp_path / f"{a}" / f"x{b}").mkdir(parents=True)
    listed: list[str] = []
    original = Folder.inside

    def inside(folder: Folder, name: str) -> Folder:
        listed.append(name)
        return original(folder, name)

    monkeypatch.setattr("ema_cli.discovery.folder_listing._MOST_FOLDERS", 30)
    monkeypatch.setattr(Folder, "inside", inside)
    with pytest.raises(NothingMatched):
        find(tmp_path)
    assert 30 <= len(listed) < 250


# Stores


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A store in memory, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.mark.parametrize("form", [name for name in LAYOUTS if "/" in name][:3])
def test_a_store_is_searched_like_a_disk(form: str, tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    """The same checkpoints are found and skipped, in the same order."""
    for step in STEPS:
        LAYOUTS[form](tmp_path / "exp" / "run" / form.format(step), step)
    write_one(tmp_path / "exp" / "run" / "init.pt")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        memory.pipe_file(f"/{path.relative_to(tmp_path)}", path.read_bytes())
    for name in ("exp/run", "exp"):
        here, there = find(tmp_path / name), find(f"memory://{name}")
        assert [str(one.path).removeprefix("memory://") for one in there.checkpoints] == [
            str(one.path.relative_to(tmp_path)) for one in here.checkpoints
        ]
        assert skipped(there) == skipped(here)
        assert len(here.checkpoints) == 2
