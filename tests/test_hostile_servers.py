"""Web servers that do everything wrong: a run ends in time, with the right exit code and words, or is right."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import ema_cli
from ema_cli.cli.exit import exit_code
from ema_cli.errors import EmaAvgError
from tests.helpers.hostile_modes import MODES, HostileMode
from tests.helpers.hostile_server import HostileServer

pytest.importorskip("aiohttp")

REMOTE = "ema_cli.storage.remote"
FILES = {
    f"c_{step}.safetensors": save({"w": np.random.default_rng(step).standard_normal(50_000).astype(np.float32)})
    for step in (1, 2)
}
"""Each has three blocks of 64 KiB."""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr(f"{REMOTE}.retries.RETRY_DELAY_SECONDS", 0)


@pytest.fixture(scope="module")
def expected() -> bytes:
    """The average of the files on the disk."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in FILES.items():
            (Path(name) / file).write_bytes(content)
        paths = [Path(name) / file for file in FILES]
        ema_cli.average(paths, decay=0.5, output=Path(name) / "ema.safetensors")
        return (Path(name) / "ema.safetensors").read_bytes()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    for name in ("retries.RETRYING_SECONDS", "web_client.ANSWER_SECONDS", "web_answer.STALL_SECONDS"):
        monkeypatch.setattr(f"{REMOTE}.{name}", 0.3)


def average(server: HostileServer, output: Path) -> tuple[int, str]:
    """Average the files of a server; return the exit code and the message."""
    try:
        ema_cli.average([f"{server.address}/{name}" for name in FILES], decay=0.5, output=output)
    except EmaAvgError as error:
        return int(exit_code(error)), f"{error.message}\n{error.hint}"
    return 0, ""


@pytest.mark.parametrize("right_answers", [0, 4])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_hostile_server_ends_the_run_or_changes_nothing(  # noqa: PLR0917 - parameters and fixtures
    mode: HostileMode,
    right_answers: int,
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code and words are those of the table; an output appears only if it is right; nothing else is printed."""
    output = tmp_path / "ema.safetensors"
    if mode.is_slow:
        hurry(monkeypatch)
    with HostileServer(mode=mode.serve, files=FILES, right_answers=right_answers, pause_seconds=0.02) as server:
        code, message = average(server, output)
    wanted, words = mode.expected(right_answers)
    assert (code, bool(re.search(words, message))) == (wanted, True), (code, message)
    assert message.replace("\n", "").isprintable()
    assert "root:" not in message
    if code:
        assert not list(tmp_path.iterdir())
    else:
        assert output.read_bytes() == expected
    assert capfd.readouterr() == ("", "")
