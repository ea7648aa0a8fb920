"""Checkpoints on the Hugging Face Hub, read and written through HfFileSystem and commits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.wrappers import Request

from tests.helpers.program import Run
from tests.helpers.series import load, write_series
from tests.interop.hub import REPO, Hub
from tests.interop.judge import DECAY, assert_fold, average, states_of

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """A hub with one repository."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def hub(server: Hub) -> Hub:
    """The hub with an empty repository."""
    server.clear()
    return server


def test_a_revision_is_read(hub: Hub, ema_avg: Run, tmp_path: Path) -> None:
    """Folders and files of a branch are read; each needed byte is sent once."""
    states = states_of(3, 300_000)
    paths = write_series(tmp_path / "run", states, form="safetensors")
    hub.branches["dev"] = 0
    hub.commit({f"run/{path.name}": path.read_bytes() for path in paths}, "dev")
    average(ema_avg, f"hf://{REPO}@dev/run", "-o", "ema.safetensors", **hub.environment)
    assert_fold(load(tmp_path / "ema.safetensors"), states)
    files = sum(path.stat().st_size for path in paths)
    assert files <= sum(length for *_, length in hub.sent) <= files + 3 * (1 << 17)
    one = f"hf://{REPO}@dev/run/{paths[0].name}"
    average(ema_avg, one, *paths[1:], "-o", "mixed.safetensors", **hub.environment)
    assert (tmp_path / "mixed.safetensors").read_bytes() == (tmp_path / "ema.safetensors").read_bytes()


def test_an_output_is_a_commit(hub: Hub, ema_avg: Run, tmp_path: Path) -> None:
    """The output goes through a temporary file, which is reported, and appears whole; then it is up to date."""
    states = states_of(2, 100_000)
    write_series(tmp_path / "run", states)
    average(ema_avg, "run", "-o", "ema.safetensors")
    job = ("run", "-o", f"hf://{REPO}/out/ema.safetensors")
    done = average(ema_avg, *job, **hub.environment)
    assert "is written to" in done.stderr
    assert hub.files()["out/ema.safetensors"] == (tmp_path / "ema.safetensors").read_bytes()
    assert set(hub.files()) == {"out/ema.safetensors", "out/ema.report.json"}
    commits = len(hub.commits)
    assert "up to date" in average(ema_avg, *job, **hub.environment).stdout
    assert len(hub.commits) == commits


def test_a_folder_is_one_commit(hub: Hub, ema_avg: Run, tmp_path: Path) -> None:
    """All files of a folder are published at once, and that commit removes old weights that are no part of it."""
    states = [{f"w{n}": state["w"] + n for n in range(3)} for state in states_of(2, 5_000)]
    write_series(tmp_path / "run", states)
    average(ema_avg, "run", "-o", f"hf://{REPO}/out/", **hub.environment)
    hub.commit({"out/README.md": b"mine"})
    assert "out/model.safetensors" in hub.files()
    job = ("run", "-o", f"hf://{REPO}/out/", "--max-shard-size", 20_000)
    assert ema_avg(*job, "--decay", DECAY, **hub.environment).returncode == 5  # something is there
    average(ema_avg, *job, "--force", **hub.environment)
    names = {f"out/model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert set(hub.commits[-2]) == names | {"out/model.safetensors.index.json", "out/README.md", "out.report.json"}
    assert set(hub.files()) == set(hub.commits[-2])
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(hub.files()[name])
    assert_fold({k: v for name in names for k, v in load(tmp_path / name).items()}, states)
    assert "up to date" in average(ema_avg, *job, **hub.environment).stdout


def test_refusals_are_reported(hub: Hub, ema_avg: Run, tmp_path: Path) -> None:
    """Missing files, revisions and repositories are reported; without permission, the error says how to log in."""
    (path, *_) = write_series(tmp_path / "run", states_of(2, 1000))
    hub.commit({"c.pt": path.read_bytes()})
    for name in (f"hf://{REPO}/none.pt", f"hf://{REPO}@none/c.pt", "hf://org/none/c.pt"):
        done = ema_avg("plan", name, "--decay", DECAY, **hub.environment)
        assert done.returncode == 7, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert name in done.stderr

    def refuse(request: Request) -> int | None:
        return 403 if "resolve" in request.path or request.method == "POST" else None

    hub.refuse = refuse
    done = ema_avg("plan", f"hf://{REPO}/c.pt", "--decay", DECAY, **hub.environment)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert "403" in done.stderr
    assert "hf auth login" in done.stderr
    done = ema_avg("run", "--decay", DECAY, "-o", f"hf://{REPO}/ema.safetensors", **hub.environment)
    assert done.returncode == 5, done.stderr
    assert "hf auth login" in done.stderr
    assert set(hub.files()) == {"c.pt"}


def test_a_busy_hub_is_asked_again(hub: Hub, ema_avg: Run, tmp_path: Path) -> None:
    """Faults that pass cost time only."""
    states = states_of(2, 1000)
    paths = write_series(tmp_path / "run", states)
    hub.commit({f"run/{path.name}": path.read_bytes() for path in paths})
    asked: list[str] = []

    def busy(request: Request) -> int | None:
        asked.append(request.path)
        return 503 if asked.count(request.path) == 2 else None

    hub.refuse = busy
    average(ema_avg, f"hf://{REPO}/run", "-o", "ema.safetensors", **hub.environment)
    assert_fold(load(tmp_path / "ema.safetensors"), states)


def test_a_killed_run_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    """A run that is interrupted during the upload of its output changes nothing, here or there."""
    write_series(tmp_path / "run", states_of(2, 100_000))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "ema_cli", "run", "--decay", str(DECAY), "-o", f"hf://{REPO}/ema.safetensors"]
    hub.delayed = True
    environment = {**os.environ, **hub.environment, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not hub.arrived.wait(0.1):
                pass
            process.send_signal(signal.SIGKILL)
        finally:
            process.wait(60)
            hub.opened.set()
    assert hub.files() == {}
    assert not list(temporary.iterdir())
