"""Reports are not trusted: what a report names is opened with care, and nothing of it is shown."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.errors import InputRefused, NothingMatched, VerificationFailed
from ema_cli.formats.open import open_checkpoint
from ema_cli.report.beside import load_report
from ema_cli.report.render import is_index, is_report, render_report
from ema_cli.storage.locations import locate
from ema_cli.verification.checks import Verification, verify
from tests.helpers.canary import CANARY
from tests.helpers.makers import fifo
from tests.helpers.program import Run
from tests.helpers.range_server import handler
from tests.helpers.series import random_states, write_series

URLS = (
    *("http://127.0.0.1:9/x.pt", "https://127.0.0.1:9/x.pt", "HTTP://127.0.0.1:9/x.pt", "s3://bucket/x.pt"),
    *("gs://bucket/x.pt", "hf://org/name/x.pt", "az://container/x.pt", "http://169.254.169.254/latest", "http://["),
)
STRANGE = (
    *("ftp://127.0.0.1/x.pt", "dir://x", "reference://x", "generic://x", "zip://x::file:///y", "local:///etc/passwd"),
    *("simplecache::http://127.0.0.1:9/x", "s3://b/x::file:///y", "github://o:r@m/x", f"s3://{'x' * 100_000}"),
)
SECRET = "hunter2-correct-horse"
SECRETS: dict[str, bytes] = {
    "text": f"{SECRET}: root\n".encode(),
    "json": json.dumps({"error": SECRET, SECRET: 1}).encode(),
    "store error": f"<Error><Code>{SECRET}</Code></Error>".encode(),
    "bytes": b"\x00\x01" + SECRET.encode(),
    "short": SECRET[:8].encode(),
    "index": json.dumps({"weight_map": {SECRET: SECRET}}).encode(),
    "broken pickle": b"\x80\x02}q\x00X\x15\x00\x00\x00" + SECRET.encode() + b"q\x01",
    "safetensors": (120).to_bytes(8, "little") + json.dumps({SECRET: {"dtype": SECRET}}).encode().ljust(120),
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An average of three checkpoints, with its report."""
    return average_in(tmp_path)


def average_in(folder: Path) -> Path:
    """Return an average of three checkpoints in a folder, with its report."""
    paths = write_series(folder / "run", random_states(3))
    ema_cli.average(paths, decay=0.7, output=folder / "ema.safetensors")
    return folder / "ema.safetensors"


def change_report(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the report of an output."""
    path = output.with_name(f"{output.stem}.report.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def name_in_report(output: Path, path: str, number: int = 0) -> None:
    """Let a report name another path as an input, from wherever it is read."""
    change_report(output, lambda document: document["inputs"][number].update(path=path, path_from_output=path))


def checked(output: Path, **options: Any) -> Verification:
    """Verify; nothing may be connected, started or written meanwhile."""
    with CANARY.armed() as events:
        found = verify(output, **options)
    assert not events
    return found


def messages(found: Verification) -> str:
    """Return everything that is shown of a verification."""
    with pytest.raises(VerificationFailed) as failed:
        found.raise_if_failed()
    return f"{failed.value.message}\n{failed.value.hint}\n{found.checks}"


@pytest.mark.parametrize("url", URLS)
def test_a_url_in_a_report_is_not_opened(url: str, output: Path) -> None:
    """The check of the input fails without a connection, and says which option opens it; the others are made."""
    name_in_report(output, url)
    found = checked(output)
    assert [one.name for one in found.failures] == ["input 1"]
    assert "was not opened: only the report names this URL" in found.failures[0].message
    shown = messages(found)
    assert "--allow-remote" in shown
    assert "--input CKPT..." in shown


@pytest.mark.parametrize("url", STRANGE)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_strange_protocol_in_a_report_is_refused(url: str, allowed: bool, output: Path) -> None:
    """With or without permission for URLs: exit 3, and no connection; the output alone can still be verified."""
    name_in_report(output, url)
    with CANARY.armed() as events, pytest.raises(InputRefused) as refused:
        verify(output, allow_remote=allowed)
    assert not events
    assert len(refused.value.message) < 1000
    assert "--input CKPT..." in refused.value.hint
    assert checked(output, output_only=True).ok


@pytest.fixture
def site(output: Path) -> Iterator[str]:
    """The address of a web server with the run."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(output.parent, io.StringIO()))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_opened_with_permission(site: str, output: Path) -> None:
    """Inputs that were averaged from a server are verified with ``allow_remote``, or when they are named."""
    urls = [f"{site}/run/ckpt_{step}.pt" for step in (100, 200, 300)]
    ema_cli.average(urls, decay=0.7, output=output, force=True)
    assert [one.name for one in checked(output).failures] == ["input 1", "input 2", "input 3"]
    assert verify(output, allow_remote=True).ok
    assert verify(output, inputs=urls).ok
    assert checked(output, inputs=[output.parent / "run"]).ok


def test_the_url_of_an_output_allows_no_other(tmp_path: Path) -> None:
    """An output in a store was named; the URLs in its report were not, be they absolute or relative to it."""
    import fsspec  # noqa: PLC0415 - only for this test

    write_series(tmp_path / "run", random_states(3))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "run"), "/untrusted/run", recursive=True)
    ema_cli.average("memory://untrusted/run", decay=0.7, output="memory://untrusted/ema.safetensors")
    output = locate("memory://untrusted/ema.safetensors")
    found = verify(output)
    assert [one.name for one in found.failures] == ["input 1", "input 2", "input 3"]
    assert verify(output, allow_remote=True).ok
    report = json.loads(store.cat("/untrusted/ema.report.json"))
    for number, one in enumerate(report["inputs"]):
        one["path"] = f"run/ckpt_{100 * number + 100}.pt"
    store.pipe("/untrusted/ema.report.json", json.dumps(report).encode())
    assert [one.name for one in verify(output).failures] == ["input 1", "input 2", "input 3"]
    assert verify(output, allow_remote=True).ok
    report["inputs"][0]["path"] = str(tmp_path / "run" / "ckpt_100.pt")
    store.pipe("/untrusted/ema.report.json", json.dumps(report).encode())
    assert [one.name for one in verify(output, quick=True).failures][:2] == ["input 1", "input 2"]
    store.rm("/untrusted", recursive=True)


@pytest.mark.parametrize("kind", SECRETS)
def test_nothing_of_a_file_is_shown(kind: str, output: Path, tmp_path: Path) -> None:
    """A report may name any local file; no message has a byte of it. If the user names it, the reason is shown."""
    secret = tmp_path / "elsewhere" / "id_rsa"
    secret.parent.mkdir()
    secret.write_bytes(SECRETS[kind])
    for path in (str(secret), f"file://{secret}", "elsewhere/id_rsa"):
        name_in_report(output, path)
        found = checked(output)
        assert [one.name for one in found.failures] == ["input 1"]
        shown = messages(found)
        assert not any(SECRET[at : at + 4] in shown for at in range(len(SECRET) - 3))
        assert "cannot be read as a checkpoint" in shown
    with pytest.raises(InputRefused) as refused:
        verify(output, inputs=[secret, *sorted((tmp_path / "run").iterdir())])
    assert "cannot be read as a checkpoint" not in refused.value.message


def test_no_number_of_another_checkpoint_is_shown(output: Path, tmp_path: Path) -> None:
    """A report that names a checkpoint it was not made of gets no recomputed number; the user's own files do."""
    private = random_states(1, seed=9)[0]
    private["scale"] = torch.tensor(1234.5678)
    torch.save(private, tmp_path / "private.pt")
    run = sorted((tmp_path / "run").iterdir())
    name_in_report(output, "private.pt")

    def take_all_of_it(document: dict[str, Any]) -> None:
        document["averages"][0]["weights"] = [1.0, 0.0, 0.0]

    change_report(output, take_all_of_it)
    found = checked(output)
    shown = messages(found)
    assert '"scale" at () is' in shown
    assert "recomputed another number" in shown
    assert "1234" not in shown
    assert "recomputed 1234" in messages(checked(output, inputs=[tmp_path / "private.pt", *run[1:]], quick=True))


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            ".",
            "..",
            "/",
            "//",
            "~",
            "~root/x",
            "file://",
            "file:///",
            "nul\0byte",
            "\ud800",
            "x" * 5000,
            "x/" * 5000,
        ),
        *(
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/mem",
            "/proc/self/environ",
            "/proc/self/fd/0",
            "C:\\x",
            "\\\\host\\c$\\x",
        ),
        *("*", "run/*.pt", "[", "{run}", "%00", "a\nb", "\x1b[31m", "\u202ex", "::error::x", "\\"),
    ],
    ids=lambda path: repr(path)[:20],
)
def test_odd_paths_fail_one_check(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern is not expanded, and neither is a home; devices and folders are no inputs; messages are printable."""
    output = average_in(tmp_path / "inside")  # so that the folder above has nothing else
    monkeypatch.chdir(output.parent)
    monkeypatch.setenv("HOME", str(output.parent / "run"))
    name_in_report(output, path)
    found = checked(output, samples=1)
    assert [one.name for one in found.failures] == ["input 1"]
    assert messages(found).replace("\n", "").isprintable()


def test_a_fifo_does_not_wait(output: Path) -> None:
    """Nobody writes to it."""
    name_in_report(output, str(fifo(output.parent / "pipe")))
    assert "is not a regular file" in checked(output).failures[0].message


def test_a_file_is_opened_once(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short report cannot let a file be read many times, by whatever names: a run has every file once."""
    monkeypatch.chdir(output.parent)
    first = output.parent / "run" / "ckpt_100.pt"
    (output.parent / "link.pt").symlink_to(first)
    (output.parent / "hard.pt").hardlink_to(first)
    for other in (str(first), "run/../run/ckpt_100.pt", "link.pt", "hard.pt"):
        name_in_report(output, other, number=2)
        found = {one.name: one for one in checked(output).checks}
        assert found["input 1"].ok
        assert "is the same file as input 1" in found["input 3"].message


def test_many_names_of_one_file_open_it_once(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure is read once, however often a report names its file, by whatever names, and be it no checkpoint."""
    opened: list[Path] = []

    def count(path: Path, **options: Any) -> object:
        opened.append(path)
        return open_checkpoint(path, **options)

    monkeypatch.setattr("ema_cli.verification.input_reader.open_checkpoint", count)
    (output.parent / "junk.pt").write_text("junk")

    def name_one(document: dict[str, Any]) -> None:
        first = document["inputs"][0]
        names = [f"{'./' * number}run/ckpt_100.pt" for number in range(20)] + ["junk.pt"] * 20
        document["inputs"] = [{**first, "path": name, "path_from_output": name} for name in names]
        average = document["averages"][0]
        average["weights"] = average["diagnostics"]["implied_lr"] = [1 / 40] * 40
        document["geometry"] = document["evidence"] = None

    change_report(output, name_one)
    assert sum(one.name.startswith("input") for one in checked(output).failures) == 39
    assert sorted(path.name for path in opened) == ["ckpt_100.pt", "ema.safetensors", "junk.pt"]


def test_many_inputs_and_tensors_take_linear_time(output: Path) -> None:
    """Hundreds of thousands of entries are compared once each, not each with each other."""
    tensor = {"dtype": "F32", "shape": [1], "action": "averaged", "norm": 1, "drift": 0, "cosine": 1, "tied_to": None}

    def swell(document: dict[str, Any]) -> None:
        first = document["inputs"][0]
        document["inputs"] = [{**first, "path": f"missing/{n}"} for n in range(15_000)]
        average = document["averages"][0]
        average["weights"] = average["diagnostics"]["implied_lr"] = [1e-5] * 15_000
        average["tensors"] += [{**tensor, "name": f"t{n}"} for n in range(15_000)]
        document["geometry"] = document["evidence"] = None

    change_report(output, swell)
    began = time.process_time()
    found = checked(output)
    assert time.process_time() - began < 15  # minutes if each were compared with each other
    assert len(found.failures) > 15_000
    assert len(messages(found)) < 50_000_000


def test_a_secret_that_was_removed_is_asked_for(output: Path) -> None:
    """An address without its signature is not tried, even with permission: the user names the inputs again."""
    name_in_report(output, "https://127.0.0.1:9/x.pt?***")
    found = checked(output, allow_remote=True)
    assert "a secret was removed" in found.failures[0].message
    assert "--input CKPT..." in messages(found)
    assert checked(output, inputs=[output.parent / "run"]).ok


@pytest.fixture
def continued(tmp_path: Path) -> Path:
    """An average that needs its last checkpoint again; that one and the new ones are in other folders."""
    paths = write_series(tmp_path / "old", random_states(3))
    output = tmp_path / "averages" / "part.safetensors"
    output.parent.mkdir()
    ema_cli.average(paths, method="uniform-time", output=output)
    new = write_series(tmp_path / "new", random_states(5))
    for path in new[:3]:
        path.unlink()
    return output


def go_on(output: Path, **options: Any) -> object:
    """Plan the continuation; nothing may be connected, started or written meanwhile."""
    with CANARY.armed() as events:
        try:
            return ema_cli.plan(output.parent.parent / "new", continue_from=output, **options)
        finally:
            assert not events


def test_the_last_checkpoint_is_read_where_the_report_says(continued: Path) -> None:
    """A local folder may be anywhere."""
    assert go_on(continued)


@pytest.mark.parametrize("url", [*URLS, *STRANGE])
def test_continuing_opens_no_url_of_a_report(url: str, continued: Path) -> None:
    """Exit 3 without a connection; the last checkpoint can be named, or found beside the new ones."""
    name_in_report(continued, url, number=2)
    with pytest.raises(InputRefused) as refused:
        go_on(continued)
    assert '"ckpt_300"' in refused.value.message
    assert "name it too" in refused.value.hint
    assert ("allow_remote=True" in refused.value.hint) == (url in URLS)
    assert len(refused.value.message) < 1000
    shutil.copy(continued.parent.parent / "old" / "ckpt_300.pt", continued.parent.parent / "new")
    assert go_on(continued)


def test_continuing_opens_a_url_with_permission(continued: Path) -> None:
    """The checkpoint that is read again is found at its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(continued.parent.parent, io.StringIO()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        name_in_report(continued, f"http://127.0.0.1:{server.server_port}/old/ckpt_300.pt", number=2)
        new = continued.parent.parent / "new"
        with pytest.raises(InputRefused):
            go_on(continued)
        plan = ema_cli.plan(new, continue_from=continued, allow_remote=True)
        assert str(plan.checkpoints[1].path).endswith("/old/ckpt_300.pt")
    finally:
        server.shutdown()
        server.server_close()


def test_continuing_from_a_store_allows_no_other_url(tmp_path: Path) -> None:
    """The folder of the average that was named is searched, and no other."""
    import fsspec  # noqa: PLC0415 - only for this test

    write_series(tmp_path / "old", random_states(3))
    old, new = (write_series(tmp_path / "new", random_states(5))[at] for at in (slice(3), slice(3, None)))
    for path in old:
        path.unlink()
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "old"), "/elsewhere/old", recursive=True)
    part = "memory://averages/part.safetensors"
    ema_cli.average("memory://elsewhere/old", method="uniform-time", output=part)
    with pytest.raises(InputRefused, match="only the report names this URL"):
        ema_cli.plan(new, continue_from=part)
    ema_cli.plan(new, continue_from=part, allow_remote=True)
    report = json.loads(store.cat("/averages/part.report.json"))
    report["inputs"][-1]["path"] = "../elsewhere/old/ckpt_300.pt"
    store.pipe("/averages/part.report.json", json.dumps(report).encode())
    with pytest.raises(NothingMatched):
        ema_cli.plan(new, continue_from=part)
    for folder in ("/elsewhere", "/averages"):
        store.rm(folder, recursive=True)


@pytest.mark.parametrize(
    "path", ["", "/", "//", ".", "nul\0byte", "\ud800", "/proc/self/fd/0", "x" * 5000, "/root/x/y"]
)
def test_continuing_searches_odd_places_with_care(path: str, continued: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is none is as if there were none: the last checkpoint is asked for."""
    name_in_report(continued, path, number=2)
    monkeypatch.chdir(continued.parent)
    with pytest.raises(NothingMatched, match="is needed again"):
        go_on(continued)


def test_the_permission_is_only_given_by_hand(output: Path, ema_avg: Run) -> None:
    """No configuration and no variable gives it, as they may belong to somebody else."""
    run = output.parent / "run"
    (output.parent / "ema-avg.toml").write_text("allow-remote = true\n")
    done = ema_avg("plan", run, "--decay", "0.5")
    assert (done.returncode, "can only be given on the command line" in done.stderr) == (2, True)
    (output.parent / "ema-avg.toml").unlink()
    assert ema_avg("plan", run, "--decay", "0.5", EMA_AVG_ALLOW_REMOTE="1").returncode == 2
    assert ema_avg("plan", run, "--decay", "0.5", "--allow-remote").returncode == 0


def test_the_permission_reaches_the_jobs_of_a_batch(continued: Path, ema_avg: Run) -> None:
    """Of named runs, and of those in a manifest."""
    root = continued.parent.parent
    name_in_report(continued, "az://container/x.pt", number=2)
    (root / "jobs.toml").write_text(f'[[job]]\nrun = "new"\ncontinue-from = "{continued}"\n')
    for arguments in (["new", "--continue-from", continued], ["--manifest", "jobs.toml"]):
        without = ema_avg("batch", *arguments, "--dry-run")
        assert (without.returncode, "--allow-remote" in without.stderr) == (9, True)
        allowed = ema_avg("batch", *arguments, "--dry-run", "--allow-remote")
        assert (allowed.returncode, "pip install adlfs" in allowed.stderr) == (9, True), allowed.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["averages"][0].update(continued={"checkpoints": 1, "steps": [1, 2], "shares": [0.5, 0.2, 0.3]}),
        lambda d: d["averages"][0].update(continued={"checkpoints": 1, "steps": [], "shares": [0.5, 0.2, 0.3]}),
        lambda d: d["averages"][0]["method"].update(warmup="inv-gamma", power=0.5),
        lambda d: d["command"]["options"].update(steps=json.loads("[" * 50 + "]" * 50)),
        lambda d: d["command"]["options"].update(decay=float("1e999")),
        lambda d: d["command"]["options"].update(metadata={"a": [{"b": 10**400}]}),
        lambda d: d["averages"][0]["tensors"][0].update(
            action="scaled", pieces={"axis": 0, "inputs": [0] * 9, "factors": [1.0] * 9}
        ),
    ],
)
def test_an_impossible_report_is_not_shown(change: Callable[[dict[str, Any]], object], output: Path) -> None:
    """It is one failed check, and no page is made of it, although all values have the types of the schema."""
    change_report(output, change)
    found = checked(output)
    assert [one.name for one in found.checks] == ["report"]
    assert "is not a valid report" in found.failures[0].message or "is not a report" in found.failures[0].message


@pytest.mark.parametrize(
    "weights", [[1e308, 1.7e308, 0.5], [-1e-300, -1.0, -1e300], [5e-324, 0.0, 0.0], [1, -1, 2**61]]
)
def test_bars_have_a_bounded_length(weights: list[float], output: Path) -> None:
    """Whatever the weights in a report are: its pages are small."""
    change_report(output, lambda document: document["averages"][0].update(weights=weights))
    report = load_report(output.with_name("ema.report.json"))
    assert len(render_report(report, ".html")) < 100_000
    assert len(render_report(report, ".md")) < 10_000


def test_keys_that_are_there_twice_are_refused(output: Path) -> None:
    """Readers disagree on which of them counts."""
    path = output.with_name("ema.report.json")
    path.write_text(path.read_text().replace('"inputs":', '"inputs": [], "inputs":', 1))
    assert "is not a report" in checked(output).failures[0].message
    assert not is_report(path)


def test_an_index_in_the_way_is_read_with_bounds(tmp_path: Path) -> None:
    """A file that a batch may replace is neither waited for nor read whole, and is ours by its form alone."""
    path = tmp_path / "index.json"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert not is_index(path)
    path.unlink()
    assert not is_index(fifo(path))
    path.unlink()
    for raw in ("[" * 100_000, '{"jobs": [], "tool": null}', '{"jobs": [], "tool": {"name": "ema-avg"}}', "\ud800"):
        path.write_text(raw, errors="surrogatepass")
        assert not is_index(path)
    path.write_text('{"jobs": [], "tool": {"name": "ema-avg", "version": "0.1"}}')
    assert is_index(path)
