"""Checkpoints in Google Cloud Storage, read and written through gcsfs: the same bytes as on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.wrappers import Request

from tests.helpers.program import Run, forked
from tests.helpers.series import load, write_series
from tests.interop.gcs import BUCKET, Gcs
from tests.interop.judge import DECAY, LARGE, assert_fold, average, states_of

pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def server() -> Iterator[Gcs]:
    """A store with one bucket."""
    store = Gcs()
    yield store
    store.close()


@pytest.fixture
def ema_avg(tmp_path: Path) -> Run:
    """Run ``ema-avg`` as a process that has imported the library of the store."""
    return forked(tmp_path, "gcsfs")


@pytest.fixture
def store(server: Gcs) -> Gcs:
    """The store, empty."""
    server.clear()
    return server


def upload(store: Gcs, paths: list[Path]) -> None:
    """Send the checkpoints of a run to the bucket."""
    for path in paths:
        store.put(f"run/{path.name}", path.read_bytes())


def always(status: int) -> Callable[[Request], int | None]:
    """Return a function that refuses every request."""
    return lambda _: status


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_from_store_to_store_and_again(form: str, store: Gcs, ema_avg: Run, tmp_path: Path) -> None:
    """A folder is read, the output written in chunks, and found up to date; its bytes are those of a local run."""
    states = states_of(3, LARGE)
    upload(store, write_series(tmp_path / "run", states, form=form))
    average(ema_avg, "run", "-o", "ema.safetensors")
    job = (f"gs://{BUCKET}/run", "-o", f"gs://{BUCKET}/out/ema.safetensors")
    average(ema_avg, *job, **store.environment)
    assert store.get("out/ema.safetensors") == (tmp_path / "ema.safetensors").read_bytes()
    assert_fold(load(tmp_path / "ema.safetensors"), states)
    assert json.loads(store.get("out/ema.report.json"))["averages"][0]["output"]["path"] == job[2]
    assert store.chunks["out/ema.safetensors"] > 1
    assert not store.uploads
    generation = store.objects["out/ema.safetensors"][0]
    assert "up to date" in average(ema_avg, *job, **store.environment).stdout
    assert store.objects["out/ema.safetensors"][0] == generation


def test_refusals_are_reported_in_one_line(store: Gcs, ema_avg: Run, tmp_path: Path) -> None:
    """Missing objects, folders and buckets are reported; without permission to read, the error says how to log in."""
    upload(store, write_series(tmp_path / "run", states_of(2, 1000)))
    for name in (f"gs://{BUCKET}/run/none.pt", f"gs://{BUCKET}/empty", "gs://no-such-bucket/run"):
        done = ema_avg("plan", name, "--decay", DECAY, **store.environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (7, 1), done.stderr
        assert name in done.stderr
    for status in (401, 403):
        store.answers.refuse = always(status)
        done = ema_avg("plan", f"gs://{BUCKET}/run/ckpt_100.pt", "--decay", DECAY, **store.environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 2), done.stderr
        assert "cannot be read" in done.stderr
        assert "gcloud auth application-default login" in done.stderr


def test_what_passes_is_tried_again(store: Gcs, ema_avg: Run, tmp_path: Path) -> None:
    """A store that is slow and sometimes busy costs time only."""
    states = states_of(2, 1000)
    upload(store, write_series(tmp_path / "run", states))
    asked: list[str] = []

    def busy(request: Request) -> int | None:
        asked.append(request.path)
        return 503 if asked.count(request.path) == 2 else None

    store.answers.refuse = busy
    store.answers.slow = 0.2
    average(ema_avg, f"gs://{BUCKET}/run", "-o", f"gs://{BUCKET}/ema.safetensors", **store.environment)
    (tmp_path / "got.safetensors").write_bytes(store.get("ema.safetensors"))
    assert_fold(load(tmp_path / "got.safetensors"), states)


def test_an_object_that_is_replaced_is_an_error(store: Gcs, ema_avg: Run, tmp_path: Path) -> None:
    """Parts are requested by generation: parts of another object of the same size are never used."""
    paths = write_series(tmp_path / "run", states_of(2, LARGE), form="safetensors")
    upload(store, paths)

    def replace(request: Request) -> int | None:
        large = int(request.headers.get("Range", "bytes=0-0").partition("-")[2]) > 1 << 20
        if large and store.get("run/ckpt_100.safetensors") == paths[0].read_bytes():
            store.put("run/ckpt_100.safetensors", paths[1].read_bytes())
        return None

    store.answers.refuse = replace
    done = ema_avg(f"gs://{BUCKET}/run", "--decay", DECAY, "-o", "ema.safetensors", **store.environment)
    assert done.returncode == 4, done.stderr
    assert "while it was being read" in done.stderr
    assert not (tmp_path / "ema.safetensors").exists()


def test_a_killed_run_leaves_nothing_under_the_name(store: Gcs, tmp_path: Path) -> None:
    """A run that is interrupted during the upload of its output leaves no object, and no upload."""
    write_series(tmp_path / "run", states_of(2, LARGE), form="safetensors")
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", str(DECAY), "-o", f"gs://{BUCKET}/killed.safetensors"]
    store.delayed = "killed"
    environment = {**os.environ, **store.environment}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not store.arrived.wait(0.1):
                pass
            process.send_signal(signal.SIGTERM)
        finally:
            store.opened.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert not store.objects
    assert not store.uploads
