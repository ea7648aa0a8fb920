"""Stores that flood, stall, refuse or lie: bounded memory and time, one reason, the right exit code, nothing half-made.

The full table, of every mode at every place, is printed by ``python -m tests.interop.hostile_stores``. Here is a slice
of it: the limits of time are short, and the runs are made in this process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ema_cli
from ema_cli.errors import InputChanged, InputRefused, NothingMatched, OutputError
from ema_cli.storage.remote import limits, retries, s3_object, stores, web_answer
from ema_cli.write import streamed_upload, waiting_pieces
from tests.helpers.series import load, write_series
from tests.interop.benches import BENCHES, Bench, lists
from tests.interop.hostile_proxy import MODES, Asked, Plan
from tests.interop.hostile_stores import NOISE, SECRETS, measure
from tests.interop.judge import DECAY, assert_fold, states_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),  # gcsfs sends bytes
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # so does huggingface_hub
]
STORES = sorted(BENCHES)
ALL_BUT_THE_HUB = pytest.mark.parametrize("bench", [name for name in STORES if name != "hub"], indirect=True)
for library in ("gcsfs", "huggingface_hub", "s3fs"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    """The stores, each behind its proxy."""
    folder = tmp_path_factory.mktemp("benches")
    with pytest.MonkeyPatch.context() as environment:
        found = {}
        for name, make in BENCHES.items():
            (folder / name).mkdir()
            found[name] = make(folder / name)
            for variable, value in found[name].environment.items():
                environment.setenv(variable, value)
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        environment.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        address = found["hub"].proxy.address
        environment.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        environment.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found
        for bench in found.values():
            bench.close()


@pytest.fixture(autouse=True)
def _few_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no delays between tries, and small parts of uploads."""
    monkeypatch.setattr(retries, "RETRY_DELAY_SECONDS", 0)
    monkeypatch.setattr(retries, "RETRYING_SECONDS", 0)
    monkeypatch.setattr("huggingface_hub.utils._http.time", _Impatient())
    monkeypatch.setattr("gcsfs.retry.asyncio", _Impatient())
    monkeypatch.setattr(streamed_upload, "ABORT_SECONDS", 1)
    monkeypatch.setattr(streamed_upload, "_PART_BYTES", 5 << 20)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set limits of time that a test can wait for; the libraries are configured anew."""
    for name, seconds in {"CONNECT": 3, "STALL": 1.5, "PACE": 0.8, "REQUEST": 2}.items():
        monkeypatch.setattr(limits, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(limits, "PACE_BYTES", 1 << 10)
    monkeypatch.setattr(web_answer, "PACE_SECONDS", 0.8)
    monkeypatch.setattr(web_answer, "PACE_BYTES", 1 << 10)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 2)
    monkeypatch.setattr(stores, "_STORES", {})


class _Impatient:
    """A module whose sleep is short: the delays between the tries of the libraries, which are not under test."""

    @staticmethod
    def sleep(_: float) -> object:
        import asyncio

        try:
            return asyncio.get_running_loop().create_task(asyncio.sleep(0))
        except RuntimeError:
            return None


@pytest.fixture(params=STORES)
def bench(
    request: pytest.FixtureRequest, benches: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """Each store, honest at first; the libraries are configured anew."""
    monkeypatch.setattr(stores, "_STORES", {})
    monkeypatch.setattr(s3_object, "_SIGNERS", {})
    s3_object._client.cache_clear()
    one = benches[request.param]
    one.proxy.plan = Plan()
    yield one
    one.proxy.plan = Plan()


def average(bench: Bench, folder: Path, **options: object) -> None:
    """Average the run in the store."""
    ema_cli.average(bench.run, decay=DECAY, output=folder / "ema.safetensors", **options)  # type: ignore[arg-type]


def test_an_honest_proxy_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    """Through the proxy the average is the right one."""
    average(bench, tmp_path)
    assert_fold(load(tmp_path / "ema.safetensors"), states_of(2, 100_000))


TOO_MUCH = {
    "flood": "more than was requested",
    "gzip bomb": "compressed",
    "range ignored": "the whole object instead of bytes",
    "huge document": "the whole object instead of bytes",
    "other range": "Content-Range 'bytes 1-",
    "half": r"received [\d,]+ of [\d,]+ bytes",
}
TOO_MUCH_OF_S3 = {
    **TOO_MUCH,
    "flood": r"more than the requested [\d,]+ bytes",
    "other range": r"sent bytes 1 to [\d,]+ instead of bytes 0 to",
    "half": r"announced [\d,]+ instead of [\d,]+ bytes",
}


@pytest.mark.parametrize("mode", TOO_MUCH)
def test_a_range_is_exactly_what_was_requested(mode: str, bench: Bench, tmp_path: Path) -> None:
    """Of an answer that is longer, packed, or of another place little is read; the run ends with exit 4."""
    bench.proxy.plan = Plan(mode=MODES[mode], when=bench.data)
    with pytest.raises(InputChanged, match=(TOO_MUCH_OF_S3 if bench.name == "S3" else TOO_MUCH)[mode]):
        average(bench, tmp_path)
    assert bench.proxy.plan.seen
    assert sum(bench.proxy.plan.sent) < (1 << 25) * len(bench.proxy.plan.seen)  # buffers of sockets; 8 GiB are offered
    assert not (tmp_path / "ema.safetensors").exists()


@pytest.mark.parametrize(
    ("place", "mode"),
    [("data", "drip"), ("data", "stall"), ("data", "reset"), ("listing", "no answer"), ("listing", "garbage")],
)
def test_a_store_that_does_not_go_on_ends_the_run(
    place: str, mode: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, one byte now and then, and broken connections end with exit 4 after the limits."""
    hurry(monkeypatch)
    bench.proxy.plan = Plan(mode=MODES[mode], when=bench.data if place == "data" else bench.listing)
    begun = time.monotonic()
    with pytest.raises(InputChanged, match="cannot be read"):
        average(bench, tmp_path)
    assert time.monotonic() - begun < 60  # the limits together; one second each, on a busy machine


@pytest.mark.parametrize("mode", ["flood", "gzip bomb"])
def test_descriptions_and_listings_are_bounded(
    mode: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description without an end is not read to it."""
    monkeypatch.setattr(limits, "CALL_BYTES", 1 << 20)
    bench.proxy.plan = Plan(mode=MODES[mode], when=lambda asked: asked.method != "HEAD" and bench.listing(asked))
    with pytest.raises(InputChanged, match="cannot be read"):
        average(bench, tmp_path)
    assert sum(bench.proxy.plan.sent) < (1 << 25) * len(bench.proxy.plan.seen)


def test_pages_without_an_end_are_bounded(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of a listing count together."""
    monkeypatch.setattr(limits, "CALL_BYTES", 1 << 20)
    bench.proxy.plan = Plan(mode=bench.pages, when=lists)
    with pytest.raises((InputChanged, NothingMatched)):
        average(bench, tmp_path)
    assert len(bench.proxy.plan.seen) < 100


STATUSES = {"401": InputRefused, "403": InputRefused, "500": InputChanged, "503": InputChanged}


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        *(("data", "401"), ("data", "404"), ("data", "429, an hour"), ("data", "503")),
        *(("listing", "403"), ("listing", "404"), ("listing", "500")),
    ],
)
def test_statuses_have_their_exit_codes(place: str, mode: str, bench: Bench, tmp_path: Path) -> None:
    """Denied is 3, missing 7 (4 if it was there before), failing 4; secrets in the answer are not repeated."""
    bench.proxy.plan = Plan(mode=MODES[mode], when=bench.data if place == "data" else bench.listing)
    missing = NothingMatched if place == "listing" else InputChanged
    with pytest.raises(STATUSES.get(mode, missing if mode == "404" else InputChanged)) as raised:
        average(bench, tmp_path)
    assert not [secret for secret in SECRETS if secret in f"{raised.value.message} {raised.value.hint}"]
    if "hour" in mode:
        asked = "asks to wait 3,600 s" if bench.name == "S3" else "asks to wait for 3,600 seconds"
        assert asked in raised.value.message


def test_a_busy_store_is_asked_again_when_it_says(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After is honored: the next request comes after that time, and the run goes on."""
    bench.proxy.plan = Plan(mode=MODES["503"], when=bench.data, times=1)
    monkeypatch.setattr(retries, "RETRYING_SECONDS", 60)
    begun = time.monotonic()
    average(bench, tmp_path)
    if bench.name != "Hub":  # its library waits; its clock is the impatient one here
        assert time.monotonic() - begun >= 1


@ALL_BUT_THE_HUB  # which is asked at the end, see test_hub
def test_another_version_of_an_object_is_not_used(bench: Bench, tmp_path: Path) -> None:
    """An object whose version changes while it is read ends the run with exit 4, by the tag of each range on S3."""
    bench.proxy.plan = Plan(mode=MODES["new version"], when=bench.data if bench.name == "S3" else bench.listing)
    with pytest.raises(InputChanged, match="while it was being read"):
        average(bench, tmp_path)


def test_nothing_but_the_error_is_shown(bench: Bench, tmp_path: Path) -> None:
    """As a program: one line for the error, one for the hint, no traceback of asyncio, no log, little memory."""
    bench.proxy.plan = Plan(mode=MODES["flood"], when=bench.data)
    arguments = [bench.run, "--decay", "0.5", "-o", "ema.safetensors"]
    environment = {**bench.environment, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "AWS_MAX_ATTEMPTS": "1"}
    found = measure(arguments, environment, tmp_path, quick=True, most=120)
    assert found.status == 4, found.stderr
    assert [line.split(":")[0].strip() for line in found.stderr.splitlines() if line.strip()][-2:-1] == ["error"]
    assert not NOISE.search(found.stderr), found.stderr
    assert found.megabytes < 300


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose average, 9.6 MB, is sent in two parts."""
    folder = tmp_path_factory.mktemp("large") / "run"
    write_series(folder, states_of(2, 2_400_000), form="safetensors")
    return folder


@pytest.mark.parametrize(
    ("stage", "mode"),
    [("begin", "403"), ("part", "500"), ("part", "no answer"), ("complete", "reset")],
)
def test_an_upload_that_fails_leaves_the_old_object(
    stage: str, mode: str, bench: Bench, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 5 with the reason; what was there stays, and no upload remains unfinished."""
    name = f"out/{stage}-{mode[:2]}.safetensors"
    url = f"{bench.out}/{name.removeprefix('out/')}"
    ema_cli.average(large, decay=0.25, output=url)
    old = bench.get(name)
    hurry(monkeypatch)
    bench.proxy.plan = Plan(mode=MODES[mode], when=bench.stages[stage])
    with pytest.raises(OutputError, match="cannot be written") as raised:
        ema_cli.average(large, decay=DECAY, output=url, force=True)
    bench.proxy.plan = Plan()
    assert bench.get(name) == old
    assert bench.unfinished() == 0
    assert not [secret for secret in SECRETS if secret in raised.value.message]
    assert bool(re.search("gcloud|AWS_PROFILE|hf auth", raised.value.hint)) is (mode == "403")


def test_a_store_that_reads_nothing_ends_the_run(bench: Bench, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is not accepted has a limit of time."""
    hurry(monkeypatch)
    bench.proxy.plan = Plan(mode=MODES["nothing read"], when=bench.stages["part"])
    begun = time.monotonic()
    with pytest.raises(OutputError, match="cannot be written"):
        ema_cli.average(large, decay=DECAY, output=f"{bench.out}/deaf.safetensors")
    assert time.monotonic() - begun < 60


@ALL_BUT_THE_HUB  # its upload is the publication, which is not interrupted
def test_an_interrupt_ends_an_upload_that_is_not_accepted(bench: Bench, large: Path, tmp_path: Path) -> None:
    """SIGINT ends the run at once although a request hangs, and the upload is aborted."""
    bench.proxy.plan = Plan(mode=MODES["nothing read"], when=bench.stages["part"])
    command = [
        sys.executable,
        "-m",
        "ema_cli",
        str(large),
        "-o",
        f"{bench.out}/stopped.safetensors",
        "--decay",
        str(DECAY),
    ]
    environment = {**os.environ, **bench.environment, "HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=large.parent, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not bench.proxy.plan.seen:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, told
    assert "Traceback" not in told
    assert bench.unfinished() == 0


@ALL_BUT_THE_HUB  # which has nothing to abort
def test_an_abort_that_hangs_is_not_waited_for(bench: Bench, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of the failure is reported although the store no longer answers."""

    def answer(asked: Asked) -> None:
        MODES["no answer" if bench.stages["abort"](asked) else "403"](asked)

    monkeypatch.setattr(limits, "STALL_SECONDS", 120)

    def which(asked: Asked) -> bool:
        return any(bench.stages[stage](asked) for stage in ("abort", "complete"))

    bench.proxy.plan = Plan(mode=answer, when=which)
    begun = time.monotonic()
    with pytest.raises(OutputError, match="cannot be written"):
        ema_cli.average(large, decay=DECAY, output=f"{bench.out}/aborted.safetensors")
    assert time.monotonic() - begun < 60


def test_an_output_that_cannot_be_checked_is_named_as_sent(bench: Bench, large: Path) -> None:
    """If the store fails after it has the output, the message says that it was sent."""
    name = "out/checked.safetensors"
    complete: list[bool] = []

    def after(asked: Asked) -> bool:
        complete.append(bench.stages["complete"](asked) or bool(complete and complete[-1]))
        return complete[-1] and asked.method in ("GET", "HEAD")

    bench.proxy.plan = Plan(mode=MODES["500"], when=after)
    with pytest.raises(OutputError, match="was sent, but could not be checked"):
        ema_cli.average(large, decay=DECAY, output=f"{bench.out}/checked.safetensors")
    bench.proxy.plan = Plan()
    assert bench.get(name)


def test_only_weights_of_an_earlier_output_are_removed(bench: Bench, tmp_path: Path) -> None:
    """A folder is replaced if its report lists its weights; other files stay, other weights are refused by name."""
    write_series(tmp_path / "run", [{f"w{n}": state["w"] + n for n in range(3)} for state in states_of(2, 2000)])
    folder = f"{bench.out}/folder-{bench.name}/"
    below = f"out/folder-{bench.name}"
    arguments = {"decay": DECAY, "output": folder, "max_shard_size": 10_000, "force": True}
    ema_cli.average(tmp_path / "run", **arguments)  # type: ignore[arg-type]
    first = {name for name in bench.names() if name.startswith(f"{below}/")}
    assert len(first) > 2
    ema_cli.average(tmp_path / "run", **{**arguments, "max_shard_size": 1 << 20})  # type: ignore[arg-type]
    assert {name for name in bench.names() if name.startswith(f"{below}/")} == {f"{below}/model.safetensors"}


def test_pieces_that_wait_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit pieces are on the disk, and each comes back once, as it was."""
    monkeypatch.setattr(waiting_pieces, "MEMORY_BYTES", 250)
    waiting = waiting_pieces.WaitingPieces()
    pieces = {100 * n: bytes([n]) * 100 for n in range(1, 9)}
    for offset, piece in reversed(pieces.items()):
        waiting.add(offset, memoryview(piece))
    assert sum(map(len, waiting._pieces.values())) <= 250
    assert {offset: waiting.take(offset) for offset in pieces} == pieces
    assert [waiting.take(offset) for offset in (0, 100, 300)] == [b"", b"", b""]
    waiting.close()
