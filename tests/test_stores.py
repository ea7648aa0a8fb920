"""A store in memory, in this process: inputs and outputs in it, the messages, and invalid outputs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

import ema_cli
from ema_cli.errors import OutputError, UsageError
from ema_cli.storage.remote import remote_source
from ema_cli.storage.remote.failure_causes import failure_of, reason_of
from ema_cli.storage.remote.remote_source import is_remote_folder
from ema_cli.storage.remote.store_failure import FailureKind
from ema_cli.storage.url import Url
from tests.helpers.series import random_states, write_series


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The store, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def upload(store: fsspec.AbstractFileSystem, folder: Path) -> None:
    """Send a folder to the store, under its name."""
    for path in folder.iterdir():
        store.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_both_ends_may_be_in_memory(form: str, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """The output is that of the files on the disk, and nothing else is left in the store."""
    upload(memory, write_series(tmp_path / "run", random_states(3), form=form)[0].parent)
    ema_cli.average(tmp_path / "run", decay=0.5, output=tmp_path / "ema.safetensors")
    ema_cli.average("memory://run", decay=0.5, output="memory://out/ema.safetensors")
    assert memory.cat_file("/out/ema.safetensors") == (tmp_path / "ema.safetensors").read_bytes()
    assert memory.find("/out") == ["/out/ema.report.json", "/out/ema.safetensors"]
    changed = memory.info("/out/ema.safetensors")["created"]
    ema_cli.average("memory://run", decay=0.5, output="memory://out/ema.safetensors")
    assert memory.info("/out/ema.safetensors")["created"] == changed  # up to date


def test_a_folder_may_be_in_memory(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """The files of the folder are those of a folder on the disk."""
    upload(memory, write_series(tmp_path / "run", random_states(3))[0].parent)
    ema_cli.average(tmp_path / "run", decay=0.5, output=tmp_path / "averaged", max_shard_size=4000)
    ema_cli.average("memory://run", decay=0.5, output="memory://averaged", max_shard_size=4000)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "averaged").iterdir()}
    assert len(expected) > 2
    assert {Path(name).name: memory.cat_file(name) for name in memory.find("/averaged")} == expected
    with pytest.raises(OutputError, match="exists"):
        ema_cli.average("memory://run", decay=0.25, output="memory://averaged", max_shard_size=4000)


@pytest.mark.parametrize("named", ["objects", "pattern", "folder"])
def test_a_store_describes_each_object_twice_at_most(
    named: str, memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to tell it from a folder, unless it was listed, and once to open it; all named at the same time."""
    monkeypatch.setattr(remote_source, "_OBJECTS_UNTIL", {})
    paths = write_series(tmp_path / "run", random_states(3), form="safetensors")
    upload(memory, tmp_path / "run")
    asked = Counter[str]()
    describe, meeting = type(memory).info, Barrier(3, timeout=60)

    def info(store: fsspec.AbstractFileSystem, path: str, **options: object) -> object:
        asked[path] += 1
        if path.endswith(".safetensors"):
            meeting.wait()
        return describe(store, path, **options)

    monkeypatch.setattr(type(memory), "info", info)
    objects = [f"memory://run/{path.name}" for path in paths]
    names = {"objects": objects, "pattern": ["memory://run/*.safetensors"], "folder": ["memory://run"]}[named]
    assert len(ema_cli.plan(names, decay=0.5).checkpoints) == 3
    counts = [count for path, count in asked.items() if path.endswith(".safetensors")]
    assert counts == [2 if named == "objects" else 1] * 3


def test_a_folder_in_place_of_an_object_is_noticed(memory: fsspec.AbstractFileSystem) -> None:
    """It is not remembered forever that an object is no folder, and of what does not exist it is not remembered."""
    assert not is_remote_folder(Url("memory://place"))
    memory.pipe_file("/place/object", b"")
    assert is_remote_folder(Url("memory://place"))
    assert not is_remote_folder(Url("memory://place/object"))
    memory.rm("/place/object")
    memory.pipe_file("/place/object/inner", b"")
    remote_source._OBJECTS_UNTIL[Url("memory://place/object")] -= remote_source._OBJECT_SECONDS
    assert is_remote_folder(Url("memory://place/object"))


def test_a_store_that_refuses_keeps_nothing(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that cannot be renamed is removed, and the disk is unchanged."""
    write_series(tmp_path / "run", random_states(3))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("you may not")

    monkeypatch.setattr(type(memory), "mv", refuse)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(OutputError, match="cannot be written: you may not"):
        ema_cli.average(tmp_path / "run", decay=0.5, output="memory://out/ema.safetensors")
    assert memory.find("/") == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("problem", [PermissionError("you may not"), ConnectionError("gone")])
def test_a_store_that_does_not_describe_an_output_is_not_said_to_have_it(
    problem: OSError, memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as for every output that cannot be written, and does not propose to overwrite what it cannot see."""
    write_series(tmp_path / "run", random_states(2))

    def refuse(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(type(memory), "info", refuse)
    monkeypatch.setattr("ema_cli.storage.remote.retries.RETRY_DELAY_SECONDS", 0)
    with pytest.raises(OutputError, match=str(problem)) as refused:
        ema_cli.average(tmp_path / "run", decay=0.5, output="memory://out/ema.safetensors")
    assert "exists" not in refused.value.message
    assert "--force" not in refused.value.hint


@pytest.mark.parametrize(
    ("output", "folder", "said"),
    [
        ("https://example.org/ema.safetensors", False, "is on a web server, which cannot be written to"),
        ("s3://bucket", True, "is a whole bucket or repository"),
        ("hf://org/name", True, "is a whole bucket or repository"),
    ],
)
def test_outputs_that_cannot_be(output: str, folder: bool, said: str, tmp_path: Path) -> None:
    """They are refused before anything is read."""
    size = 4000 if folder else None
    with pytest.raises(UsageError, match=said):
        ema_cli.average(tmp_path / "none", decay=0.5, output=output, max_shard_size=size)


def test_a_report_is_not_sent_to_a_web_server(tmp_path: Path) -> None:
    """It is refused before anything is read, without the password."""
    report = "https://bob:planted@example.org/report.json"
    with pytest.raises(UsageError, match=r"report.* is on a web server, which cannot be written to") as refused:
        ema_cli.average(tmp_path / "none", decay=0.5, output=tmp_path / "ema.safetensors", report=report)
    assert "planted" not in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "module"),
    [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub"), ("https", "yarl")],
)
def test_a_missing_library_is_reported_with_its_name(scheme: str, module: str) -> None:
    """The hint names the library to install, not an extra of this package."""
    code = f"import sys; sys.modules[{module!r}] = None\nfrom ema_cli.__main__ import main; main()"
    command = [sys.executable, "-c", code, "plan", f"{scheme}://a/b/c.pt", "--decay", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr
    assert f"{scheme}:// needs a library that is not installed" in done.stderr
    assert done.stderr.endswith(f"try: pip install {module}\n")


def test_errors_of_stores_are_distinguished() -> None:
    """Errors are distinguished by their status, wherever their libraries put it, on one line, without secrets."""
    url = Url("https://me:secret@host/a.pt?signature=hidden")

    class CodedError(Exception):
        code = "404"

    class AnsweredError(Exception):
        response = type("Answer", (), {"status_code": 401})()

    class BotocoreError(Exception):
        response: dict[str, dict[str, int]] = {"ResponseMetadata": {"HTTPStatusCode": 403}}  # noqa: RUF012 - as there

    kinds: dict[FailureKind, list[Exception]] = {
        FailureKind.MISSING: [CodedError(), FileNotFoundError()],
        FailureKind.DENIED: [AnsweredError(), BotocoreError(), OSError("Forbidden: b/o\nno"), PermissionError()],
        FailureKind.UNREACHABLE: [ConnectionRefusedError(), TimeoutError()],
        FailureKind.FAILING: [OSError("slow down")],
        FailureKind.REFUSED: [type("ParamValidationError", (Exception,), {})("no such bucket can exist")],
    }
    for kind, errors in kinds.items():
        assert {failure_of(error, url).kind for error in errors} == {kind}
    assert reason_of(OSError(f"no {url.address}\n  at all"), url) == "no https://***@host/a.pt?*** at all"
    assert reason_of(ConnectionError(), url) == "ConnectionError"


@pytest.mark.parametrize(
    ("address", "words", "reason"),
    [
        ("s3://me:secret@bucket/a.pt", 'Invalid bucket name "me:secret@bucket"', 'Invalid bucket name "***@bucket"'),
        ("https://me:s%40cret@host/a.pt", "no user me with s@cret or s%40cret", "no user me with *** or ***"),
        ("https://host/a.pt?v=1&sig=a%2Bbcd#part", "sig a+bcd of a%2Bbcd#part, v 1", "sig *** of ***#***, v 1"),
        ("https://host/a.pt", "host has no /a.pt", "host has no /a.pt"),
        ("s3://bucket/x_***/a.pt", "no x_***/a.pt in bucket", "no x_***/a.pt in bucket"),
    ],
)
def test_an_error_of_a_library_does_not_repeat_a_part_of_an_address(address: str, words: str, reason: str) -> None:
    """Login, password and values of the query are hidden where they appear alone, encoded or not."""
    assert reason_of(ValueError(words), Url(address)) == reason
