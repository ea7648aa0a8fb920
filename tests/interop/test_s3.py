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

from tests.conftest import Run
from tests.interop.judge import DECAY, assert_fold, average
from tests.interop.store import BUCKET, Store
from tests.series import FORMATS, State, load, write_series

LARGE = 3_300_000
"""Numbers in the large model: 13 MB, more than one part of an upload."""


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    """A store with one bucket."""
    store = Store()
    yield store
    store.close()


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    """The store, whose bucket is emptied after the test."""
    yield server
    for name in server.names():
        server.client.delete_object(Bucket=BUCKET, Key=name)


def states_of(count: int, elements: int) -> list[State]:
    """Return states of a model with one matrix of that size."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"w": torch.randn(elements // 100, 100, generator=generator), "b": torch.randn(5, generator=generator)}
        for _ in range(count)
    ]


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
    """Both ends in the store; the second run finds the output up to date, and another average is refused."""
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


def test_an_output_in_the_store_is_gone_on_from_and_verified(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """``--continue-from``, ``--report``, ``verify``, ``diff`` and ``inspect`` take what lies in the store."""
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
        found = ema_avg("verify", place, **store.environment)
        assert found.returncode == 0, found.stderr
        assert f"verified {place}" in found.stdout
    assert ema_avg("diff", whole, "got.safetensors", **store.environment).returncode == 0
    assert "ema_avg.folded" in ema_avg("inspect", whole, **store.environment).stderr
    store.put("run/ckpt_100.pt", store.get("run/ckpt_200.pt"))
    spoilt = ema_avg("verify", part, **store.environment)
    assert spoilt.returncode == 10
    assert "holds other weights" in spoilt.stderr


def test_only_a_report_is_overwritten_by_a_report(store: Store, ema_avg: Run, tmp_path: Path) -> None:
    """What somebody else put there stays unless ``--force`` is given; a report is replaced."""
    write_series(tmp_path / "run", states_of(2, 1000))
    job = ("run", "-o", "ema.safetensors", "--report", f"s3://{BUCKET}/page.html")
    store.put("page.html", b"somebody's page")
    assert ema_avg(*job, "--decay", "0.5", **store.environment).returncode == 5
    assert store.get("page.html") == b"somebody's page"
    assert ema_avg(*job, "--decay", "0.5", "--force", **store.environment).returncode == 0
    assert ema_avg(*job, "--decay", "0.6", "--force", **store.environment).returncode == 0
    assert "ema-avg" in store.get("page.html").decode()


def test_what_is_missing_is_told(store: Store, ema_avg: Run) -> None:
    """An object, a folder and a bucket that are not there are named, without a traceback."""
    for name in (f"s3://{BUCKET}/run/none.pt", f"s3://{BUCKET}/empty", "s3://no-such-bucket/run"):
        done = ema_avg(name, "--decay", DECAY, "-o", "ema.safetensors", **store.environment)
        assert done.returncode == 7, done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_a_killed_run_leaves_nothing_under_the_name(store: Store, tmp_path: Path) -> None:
    """A run that is told to end while its output is on the way leaves no object, and no parts that cost money."""
    write_series(tmp_path / "run", states_of(2, LARGE), form="safetensors")
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", str(DECAY), "-o", f"s3://{BUCKET}/killed.safetensors"]
    store.gate.held = "killed"
    environment = {**os.environ, **store.environment}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not store.gate.arrived.wait(0.1):
                pass
            process.send_signal(signal.SIGTERM)
        finally:
            store.gate.opened.set()
        _, told = process.communicate(timeout=60)
    store.gate.held = None
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    assert store.names() == set()
    assert store.unfinished() == []
