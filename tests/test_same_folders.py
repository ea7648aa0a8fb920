"""``--format same`` of checkpoint folders: everything in them is copied, and the averages are in their places."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import EmaAvgError, InputChanged, InputRefused, UsageError
from ema_cli.events import Event, Listener, Progress, ignore
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.records.files import FileRole
from ema_cli.report.model import Report
from tests.helpers import dcp_makers
from tests.helpers.series import random_states, same_bits
from tests.helpers.trees import averaged, changed_records, different, load_all

STEPS = (10, 20)
HALVES = (0.5, 0.5)


@pytest.fixture(scope="session", name="ranks")
def saved_by_four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of four processes."""
    base = tmp_path_factory.getbasetemp()
    return dcp_makers.four_ranks(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


def average(run: Path, output: Path, listener: Listener = ignore, **options: Any) -> Report:
    """Average the checkpoints of a run with decay 0.5."""
    made = make_options(run, **{"decay": 0.5, "output": output, "format": "same", "probe": False, **options})
    return run_average(made, listener).report


def everything(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed_files(output: Path, last: Path) -> set[str]:
    """Return the files that differ; both folders have the same names, and folders, in them."""
    assert {path.relative_to(output) for path in output.rglob("*")} == {
        path.relative_to(last) for path in last.rglob("*")
    }
    found, expected = everything(output), everything(last)
    return {name for name, data in found.items() if data != expected[name]}


def trainer_files(folder: Path, step: int) -> None:
    """Add what a trainer leaves beside the weights."""
    torch.save({"exp_avg": torch.full((9,), float(step))}, folder / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "config.json").write_text("{}")
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "deep" / "events").write_bytes(os.urandom(2000))
    (folder / "empty").mkdir()


def hugging_face(run: Path, *, suffix: str = ".safetensors", shards: bool = True) -> list[dict[str, torch.Tensor]]:
    """Write two checkpoints of a Trainer, in shards or not."""
    states = random_states(2)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    for step, state in zip(STEPS, states, strict=True):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        trainer_files(folder, step)
        parts = [dict(list(state.items())[:2]), dict(list(state.items())[2:])] if shards else [state]
        names = [f"{stem}-{n + 1:05}-of-00002{suffix}" for n in range(2)] if shards else [f"{stem}{suffix}"]
        for name, part in zip(names, parts, strict=True):
            if suffix == ".safetensors":
                save_file(part, folder / name, {"format": "pt"})
            else:
                torch.save(part, folder / name)
        if shards:
            places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
            (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return states


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("shards", [True, False])
def test_folders_of_hugging_face(tmp_path: Path, suffix: str, shards: bool) -> None:
    """The weights have the averages; optimizer, state, logs, and empty folders are those of the last checkpoint."""
    states = hugging_face(tmp_path / "run", suffix=suffix, shards=shards)
    report = average(tmp_path / "run", tmp_path / "averaged")
    last = tmp_path / "run" / "checkpoint-20"
    changed = changed_files(tmp_path / "averaged", last)
    assert len(changed) == 1 + shards
    assert all(name.endswith(suffix) for name in changed)
    found: dict[str, torch.Tensor] = {}
    for name in changed:
        path = tmp_path / "averaged" / name
        found |= load_file(path) if suffix == ".safetensors" else load_all(path)
        if suffix == ".bin":
            assert changed_records(path, last / name)
    assert found.keys() == states[0].keys()
    assert all(same_bits(found[name], tensor) for name, tensor in averaged(states, HALVES).items())
    files = {file.name: file.role for file in report.averages[0].output.files}
    assert {name for name, role in files.items() if role == FileRole.WEIGHTS} == changed
    assert files["logs/deep/events"] == FileRole.SIDE_FILE


def test_weights_of_an_accelerator(tmp_path: Path) -> None:
    """Accelerate puts the state of everything beside the weights, under names of its own."""
    for step, state in zip(STEPS, random_states(2), strict=True):
        folder = tmp_path / "run" / f"checkpoint_{step}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        torch.save({"state": {}}, folder / "optimizer.bin")
        torch.save({"step": step}, folder / "random_states_0.pkl")
    average(tmp_path / "run", tmp_path / "averaged")
    assert changed_files(tmp_path / "averaged", tmp_path / "run" / "checkpoint_20") == {"model.safetensors"}


@pytest.mark.parametrize(
    ("name", "key", "others"),
    [
        ("mp_rank_00_model_states.pt", "module", ["zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
        ("mp_rank_00/model_optim_rng.pt", "model", []),
    ],
    ids=["DeepSpeed", "Megatron"],
)
def test_folders_with_files_of_torch(tmp_path: Path, name: str, key: str, others: Sequence[str]) -> None:
    """The file of the model is a copy with the averages, wherever in the folder it is."""
    states = random_states(2)
    for step, state in zip(STEPS, states, strict=True):
        folder = tmp_path / "run" / (f"global_step{step}" if others else f"iter_{step:07}")
        (folder / name).parent.mkdir(parents=True)
        masters = {} if others else {"fp32_from_fp16_params": [[torch.ones(3)]]}
        torch.save({key: state, "iteration": step, "optimizer": masters}, folder / name)
        for other in others:
            torch.save({"optimizer_state_dict": {"m": torch.ones(3)}}, folder / other)
    report = average(tmp_path / "run", tmp_path / "averaged")
    assert [one.code for one in report.warnings if one.code == "master-weights-kept"] == ["master-weights-kept"]
    last = max((tmp_path / "run").iterdir())
    assert changed_files(tmp_path / "averaged", last) == {name}
    found, before = load_all(tmp_path / "averaged" / name), load_all(last / name)
    assert all(same_bits(found[key][tensor], value) for tensor, value in averaged(states, HALVES).items())
    assert different(found, before) == {f"{key}.{tensor}" for tensor, value in states[0].items() if value.numel()}


def test_folders_of_distributed_checkpoints(tmp_path: Path) -> None:
    """Torch loads the averages, and every other item, from a folder of one rank."""
    states = random_states(2)
    for step, state in zip(STEPS, states, strict=True):
        extra = {"exp_avg": torch.full((5,), float(step))}
        dcp_makers.save(tmp_path / "run" / f"step-{step}", {"model": state, "optim": extra, "step": step})
    average(tmp_path / "run", tmp_path / "averaged", key="model")
    assert changed_files(tmp_path / "averaged", tmp_path / "run" / "step-20") == {"__0_0.distcp"}
    found = dcp_makers.load(tmp_path / "averaged", states[0], "model")
    assert all(same_bits(found[name], tensor) for name, tensor in averaged(states, HALVES).items())
    kept = dcp_makers.load(tmp_path / "averaged", {"exp_avg": torch.zeros(5)}, "optim")
    assert kept["exp_avg"].eq(20).all()


def test_weights_in_a_folder_inside(tmp_path: Path) -> None:
    """With FSDP, accelerate has a folder of torch.distributed.checkpoint inside its own."""
    states = random_states(2)
    for step, state in zip(STEPS, states, strict=True):
        folder = tmp_path / "run" / f"checkpoint_{step}"
        dcp_makers.save(folder / "pytorch_model_fsdp_0", {"model": state})
        dcp_makers.save(folder / "optimizer_0", {"optimizer": {"m": torch.full((3,), float(step))}})
        torch.save({"step": step}, folder / "random_states_0.pkl")
    average(tmp_path / "run", tmp_path / "averaged")
    changed = changed_files(tmp_path / "averaged", tmp_path / "run" / "checkpoint_20")
    assert changed == {"pytorch_model_fsdp_0/__0_0.distcp"}
    found = dcp_makers.load(tmp_path / "averaged" / "pytorch_model_fsdp_0", states[0], "model")
    assert all(same_bits(found[name], tensor) for name, tensor in averaged(states, HALVES).items())


def test_a_damaged_directory_of_a_chunk(tmp_path: Path) -> None:
    """A chunk whose directory was damaged, which is not read for the average alone, is refused by the folder's name."""
    for step in STEPS:
        state = {name: torch.full((40,), float(step + number)) for number, name in enumerate("abc")}
        dcp_makers.save(tmp_path / "run" / f"step-{step}", state)
    path = tmp_path / "run" / "step-20" / "__0_0.distcp"
    raw = path.read_bytes()
    at = raw.index(b"archive/data.pkl", raw.index(b"archive/data.pkl") + 1)  # after the local header
    path.write_bytes(raw[:at] + b"archive/data.pkx" + raw[at + 16 :])
    with pytest.raises(InputRefused, match=r"step-20.*data\.pkl"):
        average(tmp_path / "run", tmp_path / "averaged")


@pytest.mark.parametrize("kind", ["run", "pieces"])
def test_tensors_in_the_files_of_several_ranks(tmp_path: Path, ranks: Path, kind: str) -> None:
    """Every rectangle of a sharded tensor is written where the rank has it; torch loads the whole tensors."""
    run = ranks / kind
    steps = sorted(run.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))[-2:]
    average(run, tmp_path / "averaged", last=2, key="model" if kind == "run" else None, threads=2)
    states = [dcp_makers.full_tensors(int(path.name.rpartition("-")[2])) for path in steps]
    expected = averaged(states, HALVES)
    if kind == "run":
        found = dcp_makers.load(tmp_path / "averaged", expected, "model")
        again = average(tmp_path / "averaged", tmp_path / "once.safetensors", format="safetensors", key="model")
        assert again.summary.tensors == len(expected)
    else:
        average(tmp_path / "averaged", tmp_path / "once.safetensors", format="safetensors")
        found = load_file(tmp_path / "once.safetensors")
    names = [name for name in found if name in expected and expected[name].numel()]
    assert len(names) > 10
    assert all(same_bits(found[name], expected[name]) for name in names)
    assert changed_files(tmp_path / "averaged", steps[-1]) == {
        path.name for path in steps[-1].iterdir() if path.suffix in (".distcp", ".safetensors")
    }


def test_many_files_are_verified_when_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of more files has the same bytes; each file is finished after its last piece."""
    hugging_face(tmp_path / "run")
    average(tmp_path / "run", tmp_path / "followed")
    monkeypatch.setattr("ema_cli.write.placed_folder._FOLLOWED", 1)
    monkeypatch.setattr("ema_cli.write.placed_folder._MANY_FILES", 1)
    average(tmp_path / "run", tmp_path / "averaged", read_back="all", threads=2)
    assert everything(tmp_path / "averaged") == everything(tmp_path / "followed")


def test_names_must_fit_a_folder(tmp_path: Path) -> None:
    """A folder is not written to the name of a file, and not resumed."""
    hugging_face(tmp_path / "run")
    with pytest.raises(UsageError, match=r"is a file, but the last checkpoint, .* is a folder") as refused:
        average(tmp_path / "run", tmp_path / "ema.pt", format=None)
    assert f"--format same -o {tmp_path}/ema/" in refused.value.hint
    with pytest.raises(UsageError, match="--resume keeps one partial file"):
        average(tmp_path / "run", tmp_path / "averaged", resume=True)


def add_link(folder: Path, secret: Path) -> None:
    """Add a link to a file outside."""
    (folder / "notes.txt").symlink_to(secret)


def add_folder_link(folder: Path, secret: Path) -> None:
    """Add a link to a folder outside."""
    (folder / "more").symlink_to(secret.parent)


def add_socket(folder: Path, _: Path) -> None:
    """Add a socket."""
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
    finally:
        os.chdir(here)


def add_fifo(folder: Path, _: Path) -> None:
    """Add a FIFO in a folder inside."""
    os.mkfifo(folder / "logs" / "fifo")


def add_depth(folder: Path, _: Path) -> None:
    """Add folders in folders."""
    (folder / "/".join("x" * 40)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (add_link, '"notes.txt".? is a link to|notes.txt" is a link to .*outside the checkpoint folder'),
        (add_folder_link, 'more" is a link to a folder, which is not copied'),
        (add_socket, "socket"),
        (add_fifo, "fifo"),
        (add_depth, "too deep to copy"),
    ],
)
def test_what_cannot_be_copied_is_refused(tmp_path: Path, add: Callable[[Path, Path], None], message: str) -> None:
    """A link out of the folder is never followed; devices and the like have no copy. Nothing is left behind."""
    hugging_face(tmp_path / "run")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    add(tmp_path / "run" / "checkpoint-20", tmp_path / "private" / "key")
    with pytest.raises(InputRefused, match=message):
        average(tmp_path / "run", tmp_path / "averaged")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "private"}


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of copied files is bounded."""
    hugging_face(tmp_path / "run")
    monkeypatch.setattr("ema_cli.planning.copied_folder._MOST_FILES", 5)
    with pytest.raises(InputRefused, match="has more than 5 files, too many to copy"):
        average(tmp_path / "run", tmp_path / "averaged")


def test_links_inside_the_folder_become_files(tmp_path: Path) -> None:
    """A link to a file beside it is copied as that file, as in the cache of the Hub."""
    hugging_face(tmp_path / "run")
    last = tmp_path / "run" / "checkpoint-20"
    (last / "latest").symlink_to("config.json")
    average(tmp_path / "run", tmp_path / "averaged")
    assert (tmp_path / "averaged" / "latest").read_bytes() == (last / "config.json").read_bytes()
    assert not (tmp_path / "averaged" / "latest").is_symlink()


@pytest.mark.parametrize("name", ["optimizer.pt", "model-00001-of-00002.safetensors", "logs/deep/events"])
def test_a_file_that_changes_during_the_run(tmp_path: Path, name: str) -> None:
    """A file of the last checkpoint that is written to meanwhile stops the run, whatever it is; nothing is left."""
    hugging_face(tmp_path / "run")

    def change(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding":
            with (tmp_path / "run" / "checkpoint-20" / name).open("ab") as file:
                file.write(b"x")

    with pytest.raises(InputChanged, match="was changed"):
        average(tmp_path / "run", tmp_path / "averaged", change)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_permissions_and_parents(tmp_path: Path) -> None:
    """Missing folders above the output are made, and the files have the permissions of any new file."""
    hugging_face(tmp_path / "run")
    before = os.umask(0o027)
    try:
        average(tmp_path / "run", tmp_path / "new" / "averaged")
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "averaged").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640)


def test_an_index_names_its_folder(tmp_path: Path) -> None:
    """Checkpoints that are named by the index of their shards are copied with their folders."""
    hugging_face(tmp_path / "run")
    paths = sorted((tmp_path / "run").glob("*/*.index.json"))
    made = make_options(paths, decay=0.5, output=tmp_path / "averaged", format="same", probe=False)
    run_average(made)
    average(tmp_path / "run", tmp_path / "other")
    assert everything(tmp_path / "averaged") == everything(tmp_path / "other")


def test_an_error_is_no_crash(tmp_path: Path) -> None:
    """A side file that cannot be read is refused by its name."""
    hugging_face(tmp_path / "run")
    locked = tmp_path / "run" / "checkpoint-20" / "optimizer.pt"
    locked.unlink()
    locked.symlink_to("nowhere")
    with pytest.raises(EmaAvgError, match=r"nowhere|optimizer\.pt"):
        average(tmp_path / "run", tmp_path / "averaged")


@pytest.mark.parametrize("kind", ["hf", "dcp"])
def test_folders_in_a_store(tmp_path: Path, kind: str) -> None:
    """A folder in a store is copied to the disk, with everything in it."""
    run = tmp_path / "run"
    if kind == "hf":
        hugging_face(run)
        for folder in run.iterdir():
            (folder / "empty").rmdir()  # a store has no empty folders
    else:
        for step, state in zip(STEPS, random_states(2), strict=True):
            dcp_makers.save(run / f"step-{step}", {"model": state, "step": step})
    fsspec.filesystem("memory").put(str(run), f"/{kind}", recursive=True)
    made = make_options(f"memory://{kind}", decay=0.5, output=tmp_path / "remote", format="same", probe=False)
    run_average(made)
    average(run, tmp_path / "local")
    assert everything(tmp_path / "remote") == everything(tmp_path / "local")
