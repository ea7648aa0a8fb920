"""Web servers that do everything wrong: a run ends in time, with the right exit code and words, or is right."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save

import ema_cli
from ema_cli.cli.exit import exit_code
from ema_cli.errors import EmaAvgError, UsageError
from ema_cli.storage.remote.web_object import WebObject
from ema_cli.storage.url import Url
from tests.helpers.fork_server import shared
from tests.helpers.hostile_modes import MODES, HostileMode
from tests.helpers.hostile_places import PLACES, HostilePlace
from tests.helpers.hostile_server import HostileServer, Visit, answer_rightly
from tests.helpers.program import Run

pytest.importorskip("yarl")

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
    for name in ("retries.RETRYING_SECONDS", "web_client.ANSWER_SECONDS", "web_answer.PACE_SECONDS"):
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


QUICK_PLACES = {name: place for name, place in PLACES.items() if not place.is_slow}


@pytest.mark.slow
@pytest.mark.parametrize("place", QUICK_PLACES.values(), ids=QUICK_PLACES)
def test_addresses_without_a_usable_server(place: HostilePlace, tmp_path: Path, ema_avg: Run) -> None:
    """Refused connections, unknown names and bad certificates have an exit code and a message each."""
    if "TLS" in place.name:
        pytest.importorskip("cryptography")
    with place.open(FILES) as reached:
        urls = [f"{reached.address}/{name}" for name in FILES]
        done = ema_avg(*urls, "--decay", "0.5", "-o", tmp_path / "e.safetensors", "-q", **reached.environment)
    assert (done.returncode, done.stdout) == (place.code, "")
    assert re.search(place.words, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) <= 3 * bool(place.code)


COMMANDS: dict[str, Callable[[str, Path], list[object]]] = {
    "inspect": lambda url, _: ["inspect", url],
    "plan": lambda url, _: ["plan", url, "--decay", "0.5"],
    "diff": lambda url, folder: ["diff", url, folder / "c_2.safetensors"],
    "verify": lambda url, _: ["verify", url],
    "continue": lambda url, folder: [
        *(folder / "c_2.safetensors", "--continue-from", url, "--decay", "0.5", "-o", folder / "e.safetensors"),
    ],
}
FAULTS = {
    "403": 3,
    "404": 7,
    "429, Retry-After: 100000": 4,
    "redirect to file:": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_that_reads_the_web_says_the_same(command: str, fault: str, tmp_path: Path, ema_avg: Run) -> None:
    """Exit code and reason are those of an average."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    mode = MODES[fault]
    with HostileServer(mode=mode.serve, files=FILES) as server:
        done = ema_avg(*COMMANDS[command](f"{server.address}/c_1.safetensors", tmp_path))
    assert (done.returncode, done.stdout) == (FAULTS[fault], ""), done.stderr
    assert re.search(mode.words, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize("source", ["URL", "headers", "client_kwargs"])
def test_credentials_stay_with_their_host(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to another host is followed without them, wherever they are from, and the average is the right one."""
    secret = "Basic " + b64encode(b"me:secret").decode()
    headers = {"headers": {"Authorization": secret}}
    configured = {"URL": {}, "headers": headers, "client_kwargs": {"client_kwargs": headers}}[source]
    monkeypatch.setitem(fsspec.config.conf, "http", configured)

    def elsewhere(visit: Visit) -> None:
        if visit.headers["host"].startswith("localhost"):
            visit.answer(headers={"Set-Cookie": "c=1"})
        else:
            port = visit.server.port
            visit.refuse("307 x", {"Location": f"http://localhost:{port}{visit.path}", "Set-Cookie": "d=1"})

    with HostileServer(mode=elsewhere, files=FILES) as server:
        address = server.address.replace("//", "//me:secret@") if source == "URL" else server.address
        ema_cli.average([f"{address}/{name}" for name in FILES], decay=0.5, output=tmp_path / "e.safetensors")
    sent = {(headers["host"].partition(":")[0], headers.get("authorization")) for _, headers in server.visits}
    assert sent == {("127.0.0.1", secret), ("localhost", None)}
    assert not any("cookie" in headers for _, headers in server.visits)


def test_credentials_stay_on_the_way_within_a_host(tmp_path: Path) -> None:
    """A redirect to another path of the same server is followed with user and password."""

    def moved(visit: Visit) -> None:
        if visit.path.startswith("/moved/"):
            visit.answer()
        else:
            visit.refuse("301 x", {"Location": f"/moved{visit.path}"})

    with HostileServer(mode=moved, files=FILES) as server:
        urls = [f"{server.address.replace('//', '//me:secret@')}/{name}" for name in FILES]
        ema_cli.average(urls, decay=0.5, output=tmp_path / "e.safetensors")
    assert {headers.get("authorization") for _, headers in server.visits} == {
        "Basic " + b64encode(b"me:secret").decode()
    }


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_busy_server_is_asked_again_when_it_says_so(form: str, tmp_path: Path) -> None:
    """The next request comes after the time of Retry-After, and the run succeeds."""
    times: list[float] = []

    def busy(visit: Visit) -> None:
        times.append(time.time())
        if len(times) > 1:
            visit.answer()
        else:
            visit.refuse("429 x", {"Retry-After": "1" if form == "seconds" else formatdate(times[0] + 2, usegmt=True)})

    with HostileServer(mode=busy, files=FILES, right_answers=2) as server:
        assert average(server, tmp_path / "e.safetensors") == (0, "")
    assert times[-1] - times[0] >= 1


def test_requests_are_not_repeated_without_a_reason(tmp_path: Path) -> None:
    """What no retry can change is asked once per file; what may pass, five times, and not by any file after it."""
    counts = {}
    for name in ("403", "404", "400", "whole file", "redirect to file:", "429, Retry-After: 100000", "500"):
        with HostileServer(mode=MODES[name].serve, files=FILES) as server:
            average(server, tmp_path / "e.safetensors")
        counts[name] = Counter(path for path, _ in server.visits)["/c_1.safetensors"]
    assert counts.pop("500") == 5
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("name", ["no answer", "one byte a second", "429"])
def test_retries_do_not_multiply_the_waits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends after the time for retries, and one more wait."""
    hurry(monkeypatch)
    monkeypatch.setattr(f"{REMOTE}.retries.RETRYING_SECONDS", 0.5)
    mode = (lambda visit: visit.refuse("429 x", {"Retry-After": "1"})) if name == "429" else MODES[name].serve
    begin = time.monotonic()
    with HostileServer(mode=mode, files=FILES) as server:
        assert average(server, tmp_path / "e.safetensors")[0] == 4
    assert time.monotonic() - begin < 10
    assert Counter(path for path, _ in server.visits)["/c_1.safetensors"] <= 3


def test_a_server_may_answer_one_request_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits while the server answers others, for longer than it would for a server that sends nothing."""
    hurry(monkeypatch)
    turn = threading.Lock()

    def answer_in_turn(visit: Visit) -> None:
        with turn:
            time.sleep(0.06)
            visit.answer()

    names = [f"c_{k}.safetensors" for k in range(10)]
    with HostileServer(mode=answer_in_turn, files=dict.fromkeys(names, b"x" * 9)) as server:
        urls = [Url(f"{server.address}/{name}") for name in names]
        with ThreadPoolExecutor(len(urls)) as pool:
            sizes = list(pool.map(lambda url: WebObject(url, 9).size, urls))
    assert sizes == [9] * len(urls)
    assert len(server.visits) == len(urls)


@pytest.mark.parametrize(
    ("number", "name", "right_answers"),
    [
        (signal.SIGINT, "no answer", 0),
        (signal.SIGTERM, "no answer", 4),
        (signal.SIGTERM, "no first byte", 0),
        (signal.SIGINT, "no first byte", 4),
    ],
)
def test_a_signal_ends_a_run_that_waits(number: int, name: str, right_answers: int, tmp_path: Path) -> None:
    """The run ends soon, with the exit code of the signal and one line."""
    with HostileServer(mode=MODES[name].serve, files=FILES, right_answers=right_answers) as server:
        arguments = [f"{server.address}/{file}" for file in FILES]
        running = shared().start([*arguments, "--decay", "0.5", "-o", str(tmp_path / "e.safetensors"), "-q"])
        deadline = time.monotonic() + 60
        while len(server.visits) <= right_answers and time.monotonic() < deadline:
            time.sleep(0.01)
        begin = time.monotonic()
        os.kill(running.pid, number)
        status = running.wait()
        taken = time.monotonic() - begin
        _, stderr = running.output()
        running.close()
    assert status == 128 + number, stderr
    assert taken < 5
    assert len(stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_web_server_is_no_place_for_an_output(ema_avg: Run) -> None:
    """The message says so before anything is requested."""
    with HostileServer(mode=answer_rightly, files=FILES) as server:
        done = ema_avg(f"{server.address}/c_1.safetensors", "--decay", "0.5", "-o", f"{server.address}/e.safetensors")
    assert done.returncode == 2
    assert "is on a web server, which cannot be written to" in done.stderr
    assert not server.visits


def test_a_url_that_is_not_valid_is_a_usage_error() -> None:
    """The message names it."""
    with pytest.raises(UsageError, match=r'"http://127.0.0.1:99999/c.pt" is not a valid URL'):
        ema_cli.plan(["http://127.0.0.1:99999/c.pt"], decay=0.5)
