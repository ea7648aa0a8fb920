"""Checkpoints in an S3 store, read and written through s3fs: the same bytes as on the disk, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.program import Run, forked
from tests.helpers.series import FORMATS, State, load, write_series
from tests.interop.judge import DECAY, LARGE, assert_fold, average, states_of
from tests.interop.store import BUCKET, Store


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    """A store with one bucket."""
    store = Store()
    yield store
    store.close()


@pytest.fixture
def ema_avg(tmp_path: Path) -> Run:
    """Run ``ema-avg`` as a process that has imported the library of the store."""
    return forked(tmp_path, "s3fs")


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    """The store; its bucket is emptied after the test."""
    server.gate.written.clear()
    yield server
    for name in server.names():
        server.client.delete_object(Bucket=BUCKET, Key=name)


def upload(store: Store, folder: Path) -> None:
    """Send a folder to the bucket, under its name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(f"{folder.name}/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_folder_in_the_store_gives_the_same_bytes(form: str, store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Read from the store, in every format, the average is that of the files on the disk, to the byte."""
    states = states_of(4, 20_000)
    upload(store, write_series(tmp_path / "run", states, form=form)[0].parent)
    average(ema_avg, "run", "-o", "local.safetensors")
    told = average(ema_avg, f"s3://{BUCKET}/run", "-o", "far.safetensors", "--json", **store.environment).stdout
    assert [entry["step"] for entry in json.loads(told)["inputs"]] == [100, 200, 300, 400]
    assert (tmp_path / "far.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()
    assert_fold(load(tmp_path / "far.safetensors"), states)


def test_objects_can_be_named(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Objects are named like files, in any order, mixed with files."""
    states = states_of(3, 1000)
    paths = write_series(tmp_path / "run", states)
    upload(store, tmp_path / "run")
    far = [f"s3://{BUCKET}/run/{path.name}" for path in paths]
    average(ema_avg, far[2], paths[0], far[1], "-o", "ema.safetensors", **store.environment)
    assert_fold(load(tmp_path / "ema.safetensors"), states)


def test_patterns_match_objects(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """A quoted pattern is matched in the store."""
    states = states_of(4, 1000)
    write_series(tmp_path / "run", states)
    upload(store, tmp_path / "run")
    average(ema_avg, f"s3://{BUCKET}/run/ckpt_[123]00.pt", "-o", "ema.safetensors", **store.environment)
    assert_fold(load(tmp_path / "ema.safetensors"), states[:3])


def test_the_output_may_be_in_the_store(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Output and report are written to the store, a large output in parts; its bytes are those of a local run."""
    states = states_of(2, LARGE)
    write_series(tmp_path / "run", states, form="safetensors")
    average(ema_avg, "run", "-o", "ema.safetensors")
    average(ema_avg, "run", "-o", f"s3://{BUCKET}/out/ema.safetensors", **store.environment)
    assert store.names("out/") == {"out/ema.safetensors", "out/ema.report.json"}
    assert store.get("out/ema.safetensors") == (tmp_path / "ema.safetensors").read_bytes()
    assert store.parts("out/ema.safetensors") > 1
    assert store.unfinished() == []
    report = json.loads(store.get("out/ema.report.json"))
    local = json.loads((tmp_path / "ema.report.json").read_bytes())
    assert report["averages"][0]["output"]["sha256"] == local["averages"][0]["output"]["sha256"]


def test_from_store_to_store_and_again(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Inputs and output are in the store; the second run finds the output up to date, another average is refused."""
    states = states_of(3, 1000)
    write_series(tmp_path / "run", states)
    upload(store, tmp_path / "run")
    job = (f"s3://{BUCKET}/run", "-o", f"s3://{BUCKET}/out/ema.safetensors")
    average(ema_avg, *job, **store.environment)
    first = store.client.head_object(Bucket=BUCKET, Key="out/ema.safetensors")["LastModified"]
    assert "up to date" in average(ema_avg, *job, **store.environment).stdout
    assert store.client.head_object(Bucket=BUCKET, Key="out/ema.safetensors")["LastModified"] == first
    assert ema_avg(*job, "--decay", "0.5", **store.environment).returncode == 5
    (tmp_path / "got.safetensors").write_bytes(store.get("out/ema.safetensors"))
    assert_fold(load(tmp_path / "got.safetensors"), states)


def test_an_output_in_the_store_is_continued_and_verified(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """``--continue-from``, ``--report``, ``verify``, ``diff`` and ``inspect`` take files in the store."""
    states = states_of(4, 20_000)
    paths = write_series(tmp_path / "run", states)
    upload(store, tmp_path / "run")
    far = [f"s3://{BUCKET}/run/{path.name}" for path in paths]
    part, whole, page = (f"s3://{BUCKET}/out/{name}" for name in ("part.safetensors", "ema.safetensors", "run.html"))
    average(ema_avg, *far[:2], "-o", part, "--dtype", "float64", **store.environment)
    go_on = (*far[2:], "--continue-from", part, "-o", whole, "--report", page, "--dtype", "float64")
    done = ema_avg(*go_on, **store.environment)
    assert done.returncode == 0, done.stderr
    assert store.get("out/run.html").startswith(b"<!doctype html>")
    average(ema_avg, "run", "-o", "once.safetensors", "--dtype", "float64")
    (tmp_path / "got.safetensors").write_bytes(store.get("out/ema.safetensors"))
    for name, tensor in load(tmp_path / "once.safetensors").items():
        assert torch.allclose(load(tmp_path / "got.safetensors")[name], tensor, rtol=1e-14, atol=0)
    for place in (part, whole):
        found = ema_avg("verify", place, "--allow-remote", **store.environment)
        assert found.returncode == 0, found.stderr
        assert f"verified {place}" in found.stdout
    assert ema_avg("diff", whole, "got.safetensors", **store.environment).returncode == 0
    assert "ema_avg.folded" in ema_avg("inspect", whole, **store.environment).stdout
    store.put("run/ckpt_100.pt", store.get("run/ckpt_200.pt"))
    spoilt = ema_avg("verify", part, "--allow-remote", **store.environment)
    assert spoilt.returncode == 10
    assert "has different weights" in spoilt.stderr


def test_only_a_report_is_overwritten_by_a_report(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """An object of another program stays unless ``--force`` is given; a report is replaced."""
    write_series(tmp_path / "run", states_of(2, 1000))
    job = ("run", "-o", "ema.safetensors", "--report", f"s3://{BUCKET}/page.html")
    store.put("page.html", b"somebody's page")
    assert ema_avg(*job, "--decay", "0.5", **store.environment).returncode == 5
    assert store.get("page.html") == b"somebody's page"
    assert ema_avg(*job, "--decay", "0.5", "--force", **store.environment).returncode == 0
    assert ema_avg(*job, "--decay", "0.6", "--force", **store.environment).returncode == 0
    assert "ema-avg" in store.get("page.html").decode()


FOLDER = f"s3://{BUCKET}/out/averaged/"


def fetch(store: Store, folder: Path) -> State:
    """Fetch the output folder, and return the tensors of the files in its index."""
    folder.mkdir()
    for name in store.names("out/averaged/"):
        (folder / Path(name).name).write_bytes(store.get(name))
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    found = {name: tensor for file in set(index["weight_map"].values()) for name, tensor in load(folder / file).items()}
    assert set(found) == set(index["weight_map"])
    return found


def write_models(folder: Path, states: list[State]) -> None:
    """Write a run of folders as the libraries of Hugging Face do, with a configuration and a tokenizer."""
    for number, state in enumerate(states, 1):
        one = folder / f"checkpoint-{number}"
        one.mkdir(parents=True)
        save_file(state, one / "model.safetensors", {"format": "pt"})
        (one / "config.json").write_text('{"model_type": "none"}')
        (one / "tokenizer.json").write_text("{}")


def test_a_folder_may_be_written_to_the_store(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Shards, side files, and the index last: the bytes of a local run, up to date the second time."""
    states = [{f"w{n}": state["w"] * (n + 1) for n in range(3)} for state in states_of(2, LARGE)]
    write_models(tmp_path / "run", states)
    size = ("--max-shard-size", "14MB")
    average(ema_avg, "run", "-o", "averaged", *size)
    average(ema_avg, "run", "-o", FOLDER, *size, **store.environment)
    local = {path.name: path.read_bytes() for path in (tmp_path / "averaged").iterdir()}
    assert {"config.json", "tokenizer.json", "model-00003-of-00003.safetensors"} < set(local)
    assert {Path(name).name: store.get(name) for name in store.names("out/averaged/")} == local
    assert store.parts("out/averaged/model-00001-of-00003.safetensors") > 1
    assert store.unfinished() == []
    shown = [Path(path).name for method, path in store.gate.written if "averaged" in path and method != "DELETE"]
    assert shown[-2:] == ["model.safetensors.index.json", "averaged.report.json"]
    assert_fold(fetch(store, tmp_path / "got"), states)
    far, near = (json.loads(raw) for raw in (store.get("out/averaged.report.json"), report(tmp_path)))
    assert far["averages"][0]["output"]["sha256"] == near["averages"][0]["output"]["sha256"]
    assert "up to date" in average(ema_avg, "run", "-o", FOLDER, *size, **store.environment).stdout


def report(folder: Path) -> bytes:
    """Return the report of the local folder."""
    return (folder / "averaged.report.json").read_bytes()


def test_a_folder_in_the_store_is_replaced_as_a_whole(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Without --force the old output stays; with it, weights of its report are removed, and other files stay."""
    states = [{f"w{n}": state["w"] + n for n in range(3)} for state in states_of(2, 5_000)]
    write_models(tmp_path / "run", states)
    index = "model.safetensors.index.json"
    average(ema_avg, "run", "-o", FOLDER, "--max-shard-size", 40_000, **store.environment)
    store.put("out/averaged/notes.txt", b"mine")
    old = store.get("out/averaged/model-00002-of-00002.safetensors")
    job = ("run", "-o", FOLDER, "--max-shard-size", 20_000)
    refused = ema_avg(*job, "--decay", DECAY, **store.environment)
    assert refused.returncode == 5, refused.stderr
    assert store.get("out/averaged/model-00002-of-00002.safetensors") == old
    store.gate.written.clear()
    average(ema_avg, *job, "--force", **store.environment)
    assert store.gate.written[0] == ("DELETE", f"/{BUCKET}/out/averaged/{index}")  # no mix of old and new is named
    assert {Path(name).name for name in store.names("out/averaged/")} == {
        *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        *(index, "config.json", "tokenizer.json", "notes.txt"),
    }
    assert_fold(fetch(store, tmp_path / "got"), states)


def test_a_folder_of_others_in_the_store_is_not_replaced(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """--force replaces no folder without our report, nor one with weights that its report does not list."""
    write_models(tmp_path / "run", [{"w": state["w"]} for state in states_of(2, 500)])
    store.put("out/averaged/thesis.md", b"mine")
    job = ("run", "-o", FOLDER, "--decay", DECAY, "--force")
    done = ema_avg(*job, **store.environment)
    assert (done.returncode, "thesis.md" in done.stderr, "--force" in done.stderr) == (5, True, False), done.stderr
    store.client.delete_object(Bucket=BUCKET, Key="out/averaged/thesis.md")
    assert ema_avg(*job, **store.environment).returncode == 0
    store.put("out/averaged/adapter.safetensors", b"mine")
    before = {name: store.get(name) for name in store.names("out/")}
    done = ema_avg(*job, "--dtype", "float64", **store.environment)
    assert done.returncode == 5, done.stderr
    assert "adapter.safetensors" in done.stderr
    assert {name: store.get(name) for name in store.names("out/")} == before


def test_a_folder_that_cannot_be_completed_has_no_index(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """If the store takes one shard and refuses the next, no index is written, and no upload is left."""
    states = [{f"w{n}": state["w"] + n for n in range(3)} for state in states_of(2, 5_000)]
    write_models(tmp_path / "run", states)
    store.gate.refused = "model-00002"
    job = ("run", "--decay", DECAY, "-o", FOLDER, "--max-shard-size", 20_000)
    done = ema_avg(*job, **store.environment)
    store.gate.refused = None
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
    assert "cannot be written" in done.stderr
    assert store.names() == {"out/averaged/model-00001-of-00003.safetensors"}
    assert store.unfinished() == []


def test_a_killed_run_leaves_no_folder(store: Store, tmp_path: Path) -> None:
    """A run that is interrupted during the upload of its second shard leaves no object, and no parts."""
    states = [{f"w{n}": state["w"] + n for n in range(3)} for state in states_of(2, LARGE)]
    write_models(tmp_path / "run", states)
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", str(DECAY), "-o", FOLDER, "--max-shard-size", "14MB"]
    store.gate.delayed = "model-00002"
    assert kill(store, command, tmp_path) == 128 + signal.SIGTERM
    assert store.names() == set()
    assert store.unfinished() == []


def test_missing_objects_are_reported(store: Store, ema_avg: Run) -> None:
    """A missing object, folder or bucket is named, without a traceback."""
    for name in (f"s3://{BUCKET}/run/none.pt", f"s3://{BUCKET}/empty", "s3://no-such-bucket/run"):
        done = ema_avg(name, "--decay", DECAY, "-o", "ema.safetensors", **store.environment)
        assert done.returncode == 7, done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_a_killed_run_leaves_nothing_under_the_name(store: Store, tmp_path: Path) -> None:
    """A run that is interrupted during the upload of its output leaves no object, and no parts that cost money."""
    write_series(tmp_path / "run", states_of(2, LARGE), form="safetensors")
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", str(DECAY), "-o", f"s3://{BUCKET}/killed.safetensors"]
    store.gate.delayed = "killed"
    assert kill(store, command, tmp_path) == 128 + signal.SIGTERM
    assert store.names() == set()
    assert store.unfinished() == []


def kill(store: Store, command: list[str], folder: Path) -> int:
    """Run a command, interrupt it once an upload waits at the gate, and return its status."""
    environment = {**os.environ, **store.environment}
    store.gate.arrived.clear()
    store.gate.opened.clear()
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not store.gate.arrived.wait(0.1):
                pass
            process.send_signal(signal.SIGTERM)
        finally:
            store.gate.opened.set()
        _, told = process.communicate(timeout=60)
    store.gate.delayed = None
    assert "Traceback" not in told
    return process.returncode


def test_missing_credentials_are_reported(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """Without credentials, or with wrong ones, the message says what to set, on a line of its own."""
    quiet = {**store.environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    done = ema_avg("plan", f"s3://{BUCKET}/run", "--decay", DECAY, **quiet)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 2), done.stderr
    assert "cannot be read" in done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr
