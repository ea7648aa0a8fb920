"""Files that cannot get their names at the end of a run: what is new and what is old; leftovers that are swept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ema_cli
from ema_cli.errors import OutputError
from ema_cli.events import Event, Progress
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.storage.url import Url
from ema_cli.verification.checks import verify
from ema_cli.write.publication import Finished, publish_all
from ema_cli.write.small_file import SmallFile, write_atomically
from ema_cli.write.temp_names import temporary_name
from tests.faults.shim import Fault, Shim, compiler
from tests.helpers.listeners import during
from tests.helpers.outputs import fail_at, listing
from tests.helpers.program import Run
from tests.helpers.series import open_files, random_states, write_series

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two checkpoints."""
    return write_series(tmp_path / "run", random_states(2))


def put_folder(path: Path) -> None:
    """Put a folder with a file in the place of a file, as another program might; no file can be renamed to it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "inside").touch()


def test_leftovers_of_reports_and_indexes_are_swept(tmp_path: Path, paths: list[Path], ema_avg: Run) -> None:
    """Reports of every kind and place, and the index; those of other names stay."""
    (tmp_path / "pages").mkdir()
    swept = [temporary_name(tmp_path / name) for name in ("ema.report.json", "all.json", "pages/r.html")]
    index = temporary_name(tmp_path / "pages" / "index.html")
    other = temporary_name(tmp_path / "pages" / "other.html")
    for path in (*swept, index, other):
        path.write_bytes(b"half")
    reports = ["--report", "all.json", "--report", "pages/r.html"]
    assert ema_avg(*paths, "--decay", "0.5", "-o", "ema.safetensors", *reports).returncode == 0
    assert [path.exists() for path in (*swept, index, other)] == [False, False, False, True, True]
    assert ema_avg("batch", "run", "--decay", "0.5", "--index", "pages/index.html").returncode == 0
    assert [path.exists() for path in (index, other)] == [False, True]


def test_leftovers_are_swept_if_the_outputs_are_up_to_date(tmp_path: Path, paths: list[Path]) -> None:
    """Such a run writes only the reports that were asked for."""
    output, report = tmp_path / "ema.safetensors", tmp_path / "r.html"
    for _ in range(2):
        halves = [temporary_name(path) for path in (report, tmp_path / "ema.report.json")]
        for half in halves:
            half.write_bytes(b"half")
        ema_cli.average(paths, decay=0.5, output=output, report=[report])
        assert listing(tmp_path) == {"run", "ema.safetensors", "ema.report.json", "r.html"}


def test_a_run_that_was_killed_leaves_what_the_next_one_sweeps(tmp_path: Path) -> None:
    """The system releases the lock of a process that is killed, so its file can be told from one that is in use."""
    path = tmp_path / "r.json"
    code = (
        "import os, sys, pathlib; from ema_cli.write.small_file import SmallFile; "
        "SmallFile(pathlib.Path(sys.argv[1])).write(b'half'); print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "written\n"
        write_atomically(path, b"one")
        assert len(listing(tmp_path)) == 2
        other.kill()
        other.wait()
    write_atomically(path, b"two")
    assert listing(tmp_path) == {"r.json"}


def test_a_report_that_another_run_is_writing_is_not_swept(tmp_path: Path) -> None:
    """Two runs write one report: each is complete, the later wins, and nothing is left, no file nor descriptor."""
    path, files = tmp_path / "r.json", open_files()
    first = SmallFile(path)
    first.write(b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    first.publish()
    first.discard()
    assert path.read_bytes() == b"first"
    assert listing(tmp_path) == {"r.json"}
    assert open_files() == files


def test_many_runs_write_one_report_together(tmp_path: Path) -> None:
    """Each takes the files of the others for what they are, from the first moment on."""
    path, failures = tmp_path / "r.json", list[Exception]()

    def write(number: int) -> None:
        try:
            for _ in range(100):
                write_atomically(path, b"%d" % number * 1000)
        except Exception as failure:  # noqa: BLE001 - reported below
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert path.read_bytes() in {b"%d" % number * 1000 for number in range(4)}
    assert listing(tmp_path) == {"r.json"}


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run comes between the two calls, and has removed the file, or is about to."""
    path, original, calls = tmp_path / "r.json", fcntl.flock, list[int]()

    def sweep_first(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            next(tmp_path.iterdir()).unlink()
        if len(calls) == 2:
            next(tmp_path.iterdir()).unlink()
            raise BlockingIOError
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    write_atomically(path, b"data")
    assert (path.read_bytes(), len(calls), listing(tmp_path)) == (b"data", 3, {"r.json"})


@pytest.mark.parametrize("code", NO_LOCKS)
def test_nothing_is_swept_without_locks(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is written, and what may belong to another run stays."""

    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", failing)
    half = temporary_name(tmp_path / "r.json")
    half.write_bytes(b"of another run")
    write_atomically(tmp_path / "r.json", b"data")
    assert listing(tmp_path) == {"r.json", half.name}
    assert half.read_bytes() == b"of another run"


def test_only_regular_files_are_swept(tmp_path: Path) -> None:
    """A folder, a link and a FIFO that have such a name were not made here; none of them stops the run."""
    path, secret = tmp_path / "r.json", tmp_path / "secret"
    secret.write_text("kept")
    folder, link, fifo = (temporary_name(path) for _ in range(3))
    folder.mkdir()
    link.symlink_to(secret)
    os.mkfifo(fifo)
    write_atomically(path, b"data")
    assert listing(tmp_path) == {"r.json", "secret", folder.name, link.name, fifo.name}
    assert secret.read_text() == "kept"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_report_keeps_the_mode_of_the_one_it_replaces(mode: int, tmp_path: Path) -> None:
    """A private report stays private, at any time; a new one gets what the umask leaves."""
    path = tmp_path / "r.json"
    umask = os.umask(0o027)
    try:
        write_atomically(path, b"one")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(mode)
        file = SmallFile(path)
        file.write(b"two")
        assert {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()} == {mode}
        file.publish()
    finally:
        os.umask(umask)
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, b"two")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_report_that_cannot_get_its_name(
    earlier: bool, resume: bool, tmp_path: Path, paths: list[Path], ema_avg: Run
) -> None:
    """The error lists what is new and what is not; ``verify`` fails with a reason; a run with --force repairs it."""
    output, report, page = (tmp_path / name for name in ("ema.safetensors", "ema.report.json", "all.html"))
    if earlier:
        ema_cli.average(paths, decay=0.9, output=output, report=[page])
    options = make_options(paths, decay=0.5, output=output, report=[page], force=True, resume=resume)
    with pytest.raises(OutputError) as failed:
        run_average(options, during(lambda: put_folder(report)))
    others = f'unchanged: "{report}", "{page}"' if earlier else f'unchanged: "{report}"; not written: "{page}"'
    assert failed.value.message == f'"{report}" cannot be written: Is a directory; new: "{output}"; {others}'
    assert failed.value.hint == "run again with --force"
    assert listing(tmp_path) == {"run", output.name, report.name, *([page.name] if earlier else [])}
    assert [check.name for check in verify(output).failures] == ["report"]
    (report / "inside").unlink()
    report.rmdir()
    again = [*paths, "--decay", "0.5", "-o", output, "--report", page]
    refused = ema_avg(*again)
    assert (refused.returncode, "without a readable report" in refused.stderr) == (5, True)
    assert ema_avg(*again, "--force").returncode == 0
    assert verify(output).ok
    assert ema_avg(*again, "-q").returncode == 0


def test_the_second_of_two_outputs_cannot_get_its_name(tmp_path: Path, paths: list[Path]) -> None:
    """The first has its report by then: each output matches the report beside it."""
    first, second = (tmp_path / f"ema_{decay}.safetensors" for decay in ("0.9", "0.5"))
    template = tmp_path / "ema_{decay}.safetensors"
    ema_cli.average(paths, decay=[0.9, 0.5], output=template, init="debias")

    def put(event: Event) -> None:
        if isinstance(event, Progress):
            second.unlink(missing_ok=True)
            second.write_text("of another program")

    before = {path.name: path.read_bytes() for path in tmp_path.glob("ema_0.5.report.json")}
    with pytest.raises(OutputError) as failed:
        run_average(make_options(paths, decay=[0.9, 0.5], output=template, force=True), put)
    new = f'new: "{first}", "{tmp_path}/ema_0.9.report.json"'
    old = f'unchanged: "{second}", "{tmp_path}/ema_0.5.report.json"'
    assert failed.value.message == f'"{second}" was changed by another program during the run; {new}; {old}'
    assert second.read_text() == "of another program"
    assert {path.name: path.read_bytes() for path in tmp_path.glob("ema_0.5.report.json")} == before
    assert verify(first).ok


def test_an_output_with_the_report_of_an_earlier_one(
    tmp_path: Path, paths: list[Path], ema_avg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``verify`` states that the output is newer than its report, and what makes both again."""
    output, report = tmp_path / "ema.safetensors", tmp_path / "ema.report.json"
    ema_cli.average(paths, decay=0.9, output=output)
    fail_at(monkeypatch, "replace", 2, errno.EROFS)
    words = f'"{report}" cannot be written: Read-only file system; new: "{output}"; unchanged: "{report}"'
    with pytest.raises(OutputError, match=words) as failed:
        ema_cli.average(paths, decay=0.5, output=output, force=True)
    assert failed.value.hint == "run again with force=True"
    monkeypatch.undo()
    done = ema_avg("verify", output)
    assert done.returncode == 10
    assert '"ema.safetensors" is newer than its report: changed, or of a run that wrote no report' in done.stderr
    assert "average again with --force" in done.stderr
    assert ema_avg(*paths, "--decay", "0.5", "-o", output).returncode == 5
    assert ema_avg(*paths, "--decay", "0.5", "-o", output, "--force").returncode == 0
    assert ema_avg("verify", output).returncode == 0


OF_OTHER_FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "a DCP folder": ("ema/", {"format": "dcp"}),
    "a folder of safetensors": ("ema/", {"max_shard_size": "10KB"}),
    "a torch file": ("ema.pt", {"format": "same"}),
}
"""Outputs that their report identifies, and their options."""


def fail_at_report(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let no report be renamed."""
    original = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if target.name.endswith(".report.json"):
            raise OSError(code, os.strerror(code))
        return original(path, target)

    monkeypatch.setattr(Path, "replace", failing)


@pytest.mark.parametrize("fault", [(errno.ENOSPC, False), (errno.EIO, True)], ids=["new", "of an earlier run"])
@pytest.mark.parametrize("kind", OF_OTHER_FORMATS)
def test_the_next_run_publishes_a_report_that_identifies_its_output(
    kind: str, fault: tuple[int, bool], tmp_path: Path, ema_avg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output has its name, and its report could not get its own: the same run again finds both up to date."""
    (name, options), (code, earlier) = OF_OTHER_FORMATS[kind], fault
    states = [{"w": torch.full((1000,), float(number))} for number in (1, 2)]
    paths, files = write_series(tmp_path / "run", states), open_files()
    given = make_options(paths, decay=0.5, output=f"{tmp_path}/{name}", force=True, **options)
    if earlier:
        run_average(replace(given, decay=(0.9,)))
    fail_at_report(monkeypatch, code)
    with pytest.raises(OutputError, match=rf"{os.strerror(code)}; new: .*; (not written|unchanged): .*report\.json"):
        run_average(given)
    monkeypatch.undo()
    assert open_files() == files
    assert len([left for left in listing(tmp_path) if left.startswith(".")]) == 1
    command = [*paths, "-o", name, *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())]
    again = ema_avg(*command, "--decay", "0.5")
    assert (again.returncode, "up to date" in again.stdout) == (0, True)
    assert not [left for left in listing(tmp_path) if left.startswith(".")]
    assert verify(given.destination).ok
    assert ema_avg(*command, "--decay", "0.9", "--force").returncode == 0


def test_nothing_else_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that cannot get its name leaves no report, and a further report is not kept."""
    options = make_options(
        write_series(tmp_path / "run", random_states(2)),
        decay=0.5,
        output=f"{tmp_path}/ema/",
        format="dcp",
        report=[tmp_path / "r.html"],
    )
    with monkeypatch.context() as patched:
        fail_at(patched, "rename", 1, errno.EIO)
        with pytest.raises(OutputError, match="Input/output error"):
            run_average(options)
    assert listing(tmp_path) == {"run"}
    fail_at(monkeypatch, "replace", 1, errno.EIO)
    with pytest.raises(OutputError, match="Input/output error"):
        run_average(options)
    assert {name[:17] for name in listing(tmp_path)} == {"run", "ema", ".ema.report.json."}


def test_a_damaged_output_is_not_newer_than_its_report(tmp_path: Path, paths: list[Path]) -> None:
    """A bit that flips on the disk changes no time."""
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.9, output=output)
    status = output.stat()
    with output.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(output, ns=(status.st_atime_ns, status.st_mtime_ns))
    (digest,) = (check for check in verify(output).failures if check.name == "sha256")
    assert "newer" not in digest.message


class Named:
    """A target that gets its name, or fails."""

    def __init__(self, failure: OutputError | None = None) -> None:
        self._failure = failure
        self.is_named = False

    def write(self, *pieces: bytes) -> None:
        """Take nothing."""

    def publish(self) -> None:
        """Take the name, or fail."""
        if self._failure is not None:
            raise self._failure
        self.is_named = True

    def keep(self) -> None:
        """Do nothing."""

    def discard(self) -> None:
        """Do nothing."""


def test_what_was_not_sent_to_a_store_is_listed(tmp_path: Path) -> None:
    """Whether an earlier object is there is not asked: the store may be what fails."""
    output, report = Url("s3://bucket/ema.safetensors"), Url("s3://bucket/ema.report.json")
    page = tmp_path / "r.html"
    last = Named()
    files = [
        Finished(path=output, target=Named()),
        Finished(path=report, target=Named(OutputError("no answer", hint="log in"))),
        Finished(path=page, target=last),
    ]
    with pytest.raises(OutputError) as failed:
        publish_all(files)
    assert failed.value.message == f'no answer; new: "{output}"; not written: "{page}"; not sent: "{report}"'
    assert failed.value.hint == "log in; --force overwrites what is new"
    assert not last.is_named
    with pytest.raises(OutputError, match=r"^no answer$"):
        publish_all(files[1:])


def fail_in_folder(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let no folder be made durable."""
    original = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def test_a_name_that_is_not_durable_counts_as_new(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename cannot be taken back, so the error says that the output is new."""
    output, report = tmp_path / "ema.safetensors", tmp_path / "ema.report.json"
    ema_cli.average(paths, decay=0.9, output=output)
    fail_in_folder(monkeypatch, errno.EIO)
    with pytest.raises(OutputError, match="may lose it if the system crashes: Input/output error") as failed:
        ema_cli.average(paths, decay=0.5, output=output, force=True)
    assert failed.value.message.endswith(f'; new: "{output}"; unchanged: "{report}"')
    assert listing(tmp_path) == {"run", output.name, report.name}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_synced_are_written(
    code: int, tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have no such call."""
    fail_in_folder(monkeypatch, code)
    ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    assert verify(tmp_path / "ema.safetensors").ok


def test_an_index_that_cannot_get_its_name(tmp_path: Path, ema_avg: Run) -> None:
    """The runs are done, the error says so, and the same command writes the index."""
    if compiler() is None:
        pytest.skip("no C compiler")
    for number in (1, 2):
        write_series(tmp_path / "runs" / f"r{number}", random_states(2, seed=number))
    (tmp_path / "pages").mkdir()
    shim = Shim(tmp_path)
    fault = Fault(call="rename", number=1, code=errno.EIO, folder=tmp_path / "pages")
    command = ["batch", "runs", "--decay", "0.5", "--index", "pages/index.json", "-q"]
    failed = ema_avg(*command, **shim.environment(fault))
    assert failed.returncode == 5
    facts = failed.stderr.splitlines()
    assert facts[0].endswith(
        '"pages/index.json" cannot be written: Input/output error; the runs are done: 2 written, 0 up to date, 0 failed'
    )
    assert "run the same command again" in facts[1]
    assert listing(tmp_path / "pages") == set()
    assert ema_avg(*command).returncode == 0
    assert json.loads((tmp_path / "pages" / "index.json").read_text())["summary"]["up_to_date"] == 2
