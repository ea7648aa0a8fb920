"""Many runs, one average each: what is a run, how each job ends, and that a failed job does not stop the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.batch.find_runs import find_runs
from ema_cli.batch.jobs import Job, check_jobs, make_job
from ema_cli.batch.run_batch import BatchEvent, JobEnded, JobStarted, Status, run_batch
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.options.average import Options
from ema_cli.pipeline import run_average
from ema_cli.planning.outputs import output_path
from ema_cli.report.render import INDEX_SUFFIXES, is_index
from tests.helpers.program import Run
from tests.helpers.series import (
    load,
    open_files,
    random_states,
    reference_average,
    to_numpy,
    write_one,
    write_series,
    write_sparse,
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A root with three good runs of four checkpoints."""
    for number in range(3):
        write_series(tmp_path / "runs" / f"r{number}", random_states(4, seed=number))
    return tmp_path / "runs"


def job(run: Path, output: str = "{run}/ema.safetensors", **options: Any) -> Job:
    """Return the job of a run."""
    return make_job(Options(paths=(str(run),), decay=(0.5,), output=Path(output), **options), str(run))


def ignore(_: BatchEvent) -> None:
    """Listen to nothing."""


def found(*names: object) -> list[str]:
    """Return the runs that are found, as text."""
    return [str(folder) for folder in find_runs([str(name) for name in names]).folders]


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the document on stdout."""
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


# What is a run


def test_folders_that_hold_checkpoints_are_runs(tmp_path: Path) -> None:
    """A root is searched at any depth, in natural order; hidden folders and those without checkpoints are not runs."""
    for name in ("a/r10", "a/r2", "b/deep/er", ".hidden/r", "a/.cache"):
        write_one(tmp_path / name / "ckpt_1.pt")
    write_one(tmp_path / "state" / "optimizer.pt")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "train.bin").write_bytes(b"\x01\x02" * 100)
    (tmp_path / "notes" / "readme.md").write_text("")
    assert found(tmp_path) == [str(tmp_path / name) for name in ("a/r2", "a/r10", "b/deep/er")]
    assert found(f"{tmp_path}/a/*") == [str(tmp_path / "a/r2"), str(tmp_path / "a/r10")]
    assert found(tmp_path / ".hidden") == [str(tmp_path / ".hidden/r")]


def test_a_run_is_found_once(tmp_path: Path) -> None:
    """A run that is given twice, through its root, through a link, or on a loop of links is one job."""
    write_one(tmp_path / "root" / "r" / "ckpt_1.pt")
    (tmp_path / "root" / "r" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "loop").symlink_to(tmp_path)
    (tmp_path / "root" / "self").symlink_to("self")
    (tmp_path / "link").symlink_to(tmp_path / "root" / "r")
    root = tmp_path / "root"
    assert len(found(root, f"{root}/", root / "r", tmp_path / "link")) == 1
    assert found(tmp_path / "link") == [str(tmp_path / "link")]


def test_a_run_is_not_searched_further_and_says_so(tmp_path: Path) -> None:
    """Checkpoints in a folder inside a run are not averaged; a warning lists them."""
    write_one(tmp_path / "root" / "best.pt")
    write_one(tmp_path / "root" / "r" / "ckpt_1.pt")
    search = find_runs([str(tmp_path / "root")])
    assert search.folders == (tmp_path / "root",)
    (warning,) = search.warnings
    assert warning.code == "runs-in-runs"
    assert '/root" contains checkpoints, so it is a run' in warning.message
    for names in (("root", "root/r"), ("root/r", "root")):  # then they are
        assert not find_runs([str(tmp_path / name) for name in names]).warnings
    shutil.copytree(tmp_path / "root", tmp_path / "second")
    (warning,) = find_runs([str(tmp_path)]).warnings
    assert '/second" contain checkpoints, so they are runs' in warning.message


def test_outputs_of_ours_make_no_run(runs: Path, ema_avg: Run) -> None:
    """The folder that the averages were written to is not averaged the next time."""
    (runs / "out").mkdir()
    arguments = ["batch", "runs", "--decay", "0.5", "-o", "runs/out/{name}.safetensors"]
    assert ema_avg(*arguments).returncode == 0
    assert len(list((runs / "out").iterdir())) == 6
    assert found(runs) == [str(runs / f"r{number}") for number in range(3)]
    assert "3 up to date" in ema_avg(*arguments).stdout


def test_what_holds_nothing_is_a_job_that_says_so(tmp_path: Path) -> None:
    """A missing or empty folder among good runs is a job that fails; a file is skipped with a warning."""
    write_one(tmp_path / "r" / "ckpt_1.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    names = [tmp_path / "empty", tmp_path / "r", tmp_path / "missing", tmp_path / "notes.txt"]
    search = find_runs([str(name) for name in names])
    assert set(search.folders) == {tmp_path / "r", tmp_path / "empty", tmp_path / "missing"}
    assert [warning.code for warning in search.warnings] == ["not-a-folder"]


def test_no_run_at_all_is_an_error(tmp_path: Path) -> None:
    """A root without runs, a missing name and a file have different messages."""
    (tmp_path / "a.pt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, kind, words in (
        ("empty", NothingMatched, "no folder there"),
        ("missing", NothingMatched, "there is no"),
        ("x*", NothingMatched, "there is no"),
        ("a.pt", UsageError, "not a file"),
    ):
        with pytest.raises(kind, match=words):
            find_runs([str(tmp_path / name)])
    with pytest.raises(UsageError, match="empty"):
        find_runs([""])


# The core


@pytest.mark.parametrize("workers", [1, 3])
def test_every_run_gets_its_average(workers: int, runs: Path) -> None:
    """The outputs are the reference averages, whatever the number of workers; no descriptor stays open."""
    before, events = open_files(), list[BatchEvent]()
    jobs = [job(runs / f"r{number}") for number in range(3)]
    results = run_batch(jobs, events.append, workers=workers)
    assert [result.status for result in results] == [Status.WRITTEN] * 3
    assert [result.job.run for result in results] == [str(runs / f"r{number}") for number in range(3)]
    for number, result in enumerate(results):
        states = random_states(4, seed=number)
        for name, value in load(Path(result.outputs[0])).items():
            expected = reference_average([state[name] for state in states], [1 / 8, 1 / 8, 1 / 4, 1 / 2])
            assert torch.equal(value, torch.from_numpy(expected).float().reshape(value.shape)), name
            assert to_numpy(value).shape == expected.shape
        assert all(Path(path).exists() for path in result.reports)
    assert open_files() == before
    assert sum(isinstance(event, JobStarted) for event in events) == 3
    assert sum(isinstance(event, JobEnded) for event in events) == 3
    assert [result.status for result in run_batch(jobs, ignore, workers=workers)] == [Status.UP_TO_DATE] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_in_one_job_ends_no_other(workers: int, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is the result of its job."""
    original = run_average

    def broken(options: Options, *arguments: Any) -> Any:
        if options.paths[0].endswith("r1"):
            raise RuntimeError("no")
        return original(options, *arguments)

    monkeypatch.setattr("ema_cli.batch.run_batch.run_average", broken)
    results = run_batch([job(runs / f"r{number}") for number in range(3)], ignore, workers=workers)
    assert [result.status for result in results] == [Status.WRITTEN, Status.FAILED, Status.WRITTEN]
    assert isinstance(results[1].error, RuntimeError)


def test_a_failed_job_holds_on_to_nothing(runs: Path) -> None:
    """The frames of a failed job are released, with all that it read; its message stays."""
    (runs / "r0" / "ckpt_100.pt").write_bytes(b"nothing")
    (result,) = run_batch([job(runs / "r0" / "ckpt_100.pt", str(runs / "x.safetensors"))], ignore)
    assert isinstance(result.error, InputRefused)
    assert result.error.__traceback__ is None
    assert result.error.__context__ is None


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_stops_every_job(workers: int, runs: Path) -> None:
    """An interrupt reaches the caller once the jobs have cleaned up; no partial file and no lock stays."""

    class InterruptedHere(BaseException):
        pass

    def listen(event: BatchEvent) -> None:
        if isinstance(event, JobEnded):
            raise InterruptedHere

    with pytest.raises(InterruptedHere):
        run_batch([job(runs / f"r{number}") for number in range(3)], listen, workers=workers)
    assert not [path for path in runs.rglob(".*") if path.is_file()]


def test_run_and_name_are_filled_in_once(tmp_path: Path) -> None:
    """The fields of a run are filled into output, reports and ``--continue-from``; those in a folder's name are not."""
    made = job(
        Path("a/{name}"), "{run}/{name}.safetensors", report=(Path("{name}.json"),), continue_from=Path("{run}/e.st")
    )
    assert made.options.report == (Path("{name}.json"),)
    assert made.options.continue_from == Path("a/{name}/e.st")
    for run, template, path in (
        (Path("a/{name}"), "{run}/{name}.safetensors", "a/{name}/{name}.safetensors"),
        (Path("x{decay}"), "{run}/e_{decay}.safetensors", "x{decay}/e_0.5.safetensors"),
        (Path("{run}"), "{run}/e.safetensors", "{run}/e.safetensors"),
        (tmp_path / "x" / "..", "{name}.safetensors", f"{tmp_path.name}.safetensors"),
    ):
        options = job(run, template).options
        assert [output_path(method, options) for method in options.expand()] == [Path(path)]


def test_a_folder_that_is_called_like_a_field_keeps_its_average(tmp_path: Path, ema_avg: Run) -> None:
    """``x{decay}`` is a name like any other: nothing is written into ``x0.5``."""
    write_series(tmp_path / "runs" / "x{decay}", random_states(2))
    (tmp_path / "runs" / "x0.5").mkdir()
    assert ema_avg("batch", "runs", "--decay", "0.5", "-q").returncode == 0
    assert (tmp_path / "runs" / "x{decay}" / "ema.safetensors").exists()
    assert list((tmp_path / "runs" / "x0.5").iterdir()) == []


def test_jobs_that_would_write_one_file_are_refused(tmp_path: Path) -> None:
    """Equal names, reports, several decays, links to one folder, and the index: refused before anything is read."""
    (tmp_path / "link").symlink_to(tmp_path)
    here = str(tmp_path)
    for jobs, index in (
        ([job(Path("a/x"), here + "/{name}.safetensors"), job(Path("b/x"), here + "/{name}.safetensors")], None),
        ([job(Path("a"), here + "/e.safetensors"), job(Path("b"), here + "/link/e.safetensors")], None),
        ([job(Path("a"), report=(Path("r.json"),)), job(Path("b"), report=(Path("r.json"),))], None),
        ([job(Path("a"), here + "/e.safetensors")], tmp_path / "e.report.json"),
    ):
        with pytest.raises(UsageError, match="would both write"):
            check_jobs(jobs, index)
    check_jobs([job(Path("a")), job(Path("b"))], tmp_path / "index.json")


def test_an_index_has_a_writer_per_suffix() -> None:
    """A format of the index is one entry of a table."""
    assert INDEX_SUFFIXES == (".json", ".html")


# The command


def test_a_batch_continues_after_failed_runs(runs: Path, ema_avg: Run) -> None:
    """Failures of every kind among good runs: exit 9, the good ones written, each failure with its own code."""
    good = {f"runs/r{number}" for number in range(3)}
    write_series(runs / "cut", random_states(2))
    for path in (runs / "cut").iterdir():
        path.write_bytes(path.read_bytes()[:700])
    write_series(runs / "mixed", random_states(2))
    write_one(runs / "mixed" / "ckpt_300.pt")
    for step in (1, 2):
        save_file({"w": torch.tensor([float(step), float("nan")])}, write_one(runs / "nan" / f"s_{step}.safetensors"))
    write_series(runs / "taken", random_states(2))
    (runs / "taken" / "ema.safetensors").mkdir()
    write_series(runs / "locked", random_states(2))
    (runs / "locked" / "ema.report.json").write_text("{}")
    (runs / "empty").mkdir()
    done = ema_avg("batch", "runs", "runs/empty", "gone", "--decay", "0.5", "--json", "--index", "index.json")
    assert done.returncode == 9, done.stderr
    index = document(done)
    assert index == json.loads((runs.parent / "index.json").read_text())
    assert {entry["run"] for entry in index["jobs"] if entry["status"] == "written"} == good
    codes = {entry["run"]: entry["error"]["exit_code"] for entry in index["jobs"] if entry["error"]}
    assert codes == {
        "runs/cut": 3,
        "runs/mixed": 3,
        "runs/nan": 3,
        "runs/taken": 5,
        "runs/locked": 5,
        "runs/empty": 7,
        "gone": 7,
    }
    assert index["summary"]["written"] == 3
    assert index["summary"]["failed"] == 7
    assert "Traceback" not in done.stderr
    again = ema_avg("batch", "runs", "runs/empty", "gone", "--decay", "0.5")
    assert again.returncode == 9
    assert again.stdout.splitlines()[-1].startswith("10 runs: 3 up to date, 7 failed")
    assert "runs/cut" in again.stdout
    assert "runs/cut" in again.stderr
    assert not [path for path in runs.rglob(".*") if path.is_file()]


def test_the_table_has_a_row_per_run(runs: Path, ema_avg: Run) -> None:
    """Run, result, checkpoints and seconds, or the error, on stdout; a line for each job during the batch on stderr."""
    write_series(runs / "bad", random_states(2))
    write_one(runs / "bad" / "ckpt_300.pt")
    done = ema_avg("batch", "runs", "--decay", "0.5")
    talk, lines = done.stderr.splitlines(), done.stdout.splitlines()
    assert sum(line.startswith(f"{number}/4 wrote runs/") for number in range(1, 5) for line in talk) == 3
    rows = [line.split() for line in lines[next(i for i, line in enumerate(lines) if line.startswith(" run ")) :]]
    assert rows[0] == ["run", "result", "checkpoints", "seconds"]
    assert rows[1][:2] == ["runs/bad", "failed"]
    assert rows[1][3:8] == ["the", "checkpoints", "are", "not", "of"]
    assert rows[2][:3] == ["runs/r0", "wrote", "4"]
    assert "\x1b" not in done.stderr + done.stdout


def test_quiet_reports_failures_only(runs: Path, ema_avg: Run) -> None:
    """``-q`` is silent when all goes well; a failed job is named on stderr."""
    silent = ema_avg("batch", "runs", "--decay", "0.5", "-q")
    assert (silent.stdout, silent.stderr) == ("", "")
    write_series(runs / "bad", random_states(2))
    write_one(runs / "bad" / "ckpt_300.pt")
    done = ema_avg("batch", "runs", "--decay", "0.5", "-q")
    assert done.returncode == 9
    assert done.stdout == ""
    assert "failed: 1/4 runs/bad: " in done.stderr
    assert "r0" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 4])
def test_sixty_runs_in_one_go(jobs: int, tmp_path: Path) -> None:
    """Sixty runs need no more descriptors than a few do, and their index links to every report."""
    states = random_states(3)
    for number in range(60):
        write_series(tmp_path / "runs" / f"r{number}", states)
    (tmp_path / "all").mkdir()
    command = (
        f"ulimit -n 60; exec {sys.executable} -m ema_cli batch runs --decay 0.5 --jobs {jobs} --index all/index.json"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("60 runs: 60 written")
    index = json.loads((tmp_path / "all" / "index.json").read_text())
    assert [entry["run"] for entry in index["jobs"]] == [f"runs/r{number}" for number in range(60)]
    for entry in index["jobs"]:
        assert entry["checkpoints"] == 3
        for path in (*entry["outputs"], *entry["reports"]):
            assert (tmp_path / "all" / path).is_file()
    assert is_index(tmp_path / "all" / "index.json")
    assert len({path.read_bytes() for path in tmp_path.glob("runs/*/ema.safetensors")}) == 1


def test_a_dry_run_writes_nothing(runs: Path, ema_avg: Run) -> None:
    """``--dry-run`` shows what each job would do: write, nothing, or fail."""
    assert ema_avg("batch", "runs/r0", "--decay", "0.5").returncode == 0
    write_series(runs / "bad", random_states(2))
    write_one(runs / "bad" / "ckpt_300.pt")
    before = {path: path.stat().st_mtime_ns for path in runs.parent.rglob("*")}
    done = ema_avg("batch", "runs", "--decay", "0.5", "-n", "--index", "index.json", "--json")
    assert done.returncode == 9
    assert {path: path.stat().st_mtime_ns for path in runs.parent.rglob("*")} == before
    assert {entry["run"]: entry["status"] for entry in document(done)["jobs"]} == {
        "runs/bad": "failed",
        "runs/r0": "up_to_date",
        "runs/r1": "planned",
        "runs/r2": "planned",
    }
    assert document(done)["jobs"][2]["outputs"] == ["runs/r1/ema.safetensors"]
    assert document(done)["jobs"][2]["reports"] == []


def test_the_options_of_the_main_job_apply_to_every_job(runs: Path, ema_avg: Run) -> None:
    """Several decays, a type, a selection and further reports: for each run as for a single average."""
    flags = ["--decay", "0.5", "--decay", "0.9", "--dtype", "float64", "--last", "2"]
    done = ema_avg("batch", "runs", *flags, "-o", "{name}_{decay}.safetensors", "--report", "{run}/all.json")
    assert done.returncode == 0, done.stderr
    assert ema_avg("runs/r1", *flags, "-o", "one_{decay}.safetensors").returncode == 0
    for decay in ("0.5", "0.9"):
        one, many = (runs.parent / f"{name}_{decay}.safetensors" for name in ("one", "r1"))
        assert one.read_bytes() == many.read_bytes()
    assert len(json.loads((runs / "r2" / "all.json").read_text())["averages"]) == 2


def test_configuration_applies_to_a_batch(runs: Path, ema_avg: Run) -> None:
    """A file may have the options of the batch, too; the main job ignores them."""
    (runs.parent / "ema-avg.toml").write_text('decay = 0.5\njobs = 2\noutput = "{name}.safetensors"\n')
    assert ema_avg("batch", "runs").returncode == 0
    assert (runs.parent / "r2.safetensors").exists()
    options = document(ema_avg("batch", "--show-config", "--json"))["options"]
    assert (options["jobs"]["value"], options["jobs"]["origin"]) == (2, "file")
    assert ema_avg("plan", "runs/r0").returncode == 0
    assert "jobs" not in document(ema_avg("--show-config", "--json"))["options"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no run was named"),
        (["runs"], 2, "neither --decay"),
        (["runs", "--decay", "2"], 2, "not in [0, 1)"),
        (["runs", "--decay", "0.5", "--jobs", "0"], 2, "--jobs 0"),
        (["runs", "--decay", "0.5", "-o", "one.safetensors"], 2, "would both write"),
        (["runs", "--decay", "0.5", "-o", "{name}.npz"], 2, "must end in .safetensors"),
        (["runs", "--decay", "0.5", "--decay", "0.6"], 2, "{decay}"),
        (["runs", "--decay", "0.5", "-o", "{name}_{sigma_rel}.safetensors"], 2, "has no {sigma_rel}"),
        (["runs", "--decay", "0.5", "--index", "index.pdf"], 2, "no index format"),
        (["runs", "--decay", "0.5", "--index", "foreign.json/index.json"], 5, "is a file, not a folder"),
        (["runs", "--decay", "0.5", "--index", "foreign.json"], 5, "not an index"),
        (["runs", "--decay", "0.5", "--report", "all.json"], 2, "would both write"),
        (["gone", "--decay", "0.5"], 7, "there is no"),
        (["foreign.json", "--decay", "0.5"], 2, "a run is a folder"),
    ],
)
def test_a_wrong_command_line_starts_nothing(
    arguments: list[str], code: int, words: str, runs: Path, ema_avg: Run
) -> None:
    """What is wrong with the whole batch is reported before any job, with the exit code of its kind."""
    (runs.parent / "foreign.json").write_text('{"jobs": []}')
    done = ema_avg("batch", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not list(runs.rglob("*.safetensors"))


def manifest(folder: Path, text: str) -> Path:
    """Write a manifest."""
    path = folder / "jobs.toml"
    path.write_text(text)
    return path


def test_a_manifest_gives_each_job_its_options(runs: Path, ema_avg: Run) -> None:
    """The setting nearest to a job wins: flags, its table, ``[defaults]``, and then the configuration."""
    manifest(
        runs.parent,
        """
        [defaults]
        half-life = [1, 2]
        output = "{name}_{method}_{half_life}.safetensors"
        [[job]]
        run = "runs/r0"
        [[job]]
        paths = ["runs/r1/ckpt_[12]00.pt", "runs/r1/ckpt_300.pt"]
        method = "uniform"
        output = "{name}_u.safetensors"
        [[job]]
        run = "runs/r2"
        decay = 0.25
        output = "{run}/d.safetensors"
        """,
    )
    done = ema_avg("batch", "--manifest", "jobs.toml", "--dtype", "float64", "--json", EMA_AVG_HALF_LIFE="7")
    assert done.returncode == 0, done.stderr
    entries = document(done)["jobs"]
    assert [entry["outputs"] for entry in entries] == [
        ["r0_ema_1.safetensors", "r0_ema_2.safetensors"],
        ["r1_u.safetensors"],
        ["runs/r2/d.safetensors"],
    ]
    assert [entry["checkpoints"] for entry in entries] == [4, 3, 4]
    assert load(runs.parent / "r1_u.safetensors")["scale"].dtype is torch.float64
    assert json.loads((runs / "r2" / "d.report.json").read_text())["averages"][0]["method"]["decay"] == 0.25
    done = ema_avg("batch", "--manifest", "jobs.toml", "--half-life", "3", "-o", "f_{name}.safetensors", "--json")
    assert [entry["outputs"] for entry in document(done)["jobs"]] == [[f"f_r{n}.safetensors"] for n in range(3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[job]] tables"),
        ("job = 3", "no [[job]] tables"),
        ("[[jobs]]\nrun = 'a'", "did you mean job"),
        ("[[job]]\nrn = 'a'", 'neither "run" and "paths"'),
        ("[[job]]\nrun = 'a'\npaths = ['b']", 'both of "run" and "paths"'),
        ("[[job]]\nrun = 3", "run must be text"),
        ("[[job]]\npaths = 'b'", "paths must be a list"),
        ('[[job]]\nrun = "a\\u0000"', "a character that no path can have"),
        ("[[job]]\nrun = 'a'\ndecy = 0.5", "did you mean decay"),
        ("[[job]]\nrun = 'a'\n[[job]]\nrun = 'b'\ndecay = 'x'", "job 2: decay"),
        ("[defaults]\njson = true\n[[job]]\nrun = 'a'", "of the whole batch"),
        ("[[job]]\nrun = 'a'\ndecay = 0.5\nhalf-life = 2", "job 1: --decay and --half-life"),
        ("defaults = 1\n[[job]]\nrun = 'a'", "defaults is not a table"),
        ("[[job]", "is not TOML"),
    ],
)
def test_a_wrong_manifest_starts_nothing(text: str, words: str, tmp_path: Path, ema_avg: Run) -> None:
    """A key that no job knows is an error with the file, the job and a suggestion."""
    manifest(tmp_path, text)
    done = ema_avg("batch", "--manifest", "jobs.toml")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "jobs.toml" in done.stderr


def test_a_path_in_a_manifest_may_be_impossible(tmp_path: Path, ema_avg: Run) -> None:
    """Only the job with the error fails, with the system's reason."""
    manifest(tmp_path, f"[[job]]\npaths = ['{'x' * 5000}']\ndecay = 0.5")
    done = ema_avg("batch", "--manifest", "jobs.toml", "-o", "ema.safetensors")
    assert done.returncode == 9, done.stderr
    assert "File name too long" in done.stderr


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_keeps_what_is_done(number: signal.Signals, jobs: str, runs: Path) -> None:
    """The small runs are done, the large one is interrupted: 128 + n, their outputs stay, no partial file does."""
    for step in range(6):
        write_sparse(runs / "s" / f"s_{step}.safetensors", w=40_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", "batch", "runs", "--decay", "0.5", "--jobs", jobs],
        cwd=runs.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    printed = [process.stderr.readline() for _ in range(3)]
    wait_for(lambda: list((runs / "s").glob(".*.partial")))
    process.send_signal(number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 128 + number, talk
    assert all(" wrote " in line for line in printed)
    assert "3 of 4 runs are done" in talk
    assert (runs / "r0" / "ema.safetensors").exists()
    assert not (runs / "s" / "ema.safetensors").exists()
    assert not [path for path in runs.rglob(".*") if path.is_file()]


def test_names_of_folders_cannot_speak_to_the_terminal(tmp_path: Path, ema_avg: Run) -> None:
    """Escape sequences and line breaks in the name of a run are escaped, in lines, table and errors."""
    for name in ("x\x1b[31m[red]", "y\n::error::z"):
        write_series(tmp_path / "runs" / name, random_states(2))
    write_one(tmp_path / "runs" / "y\n::error::z" / "ckpt_300.pt")
    done = ema_avg("batch", "runs", "--decay", "0.5", "-v")
    assert done.returncode == 9
    assert "\x1b" not in done.stderr + done.stdout
    assert "\n::error::" not in done.stderr + done.stdout
    assert "[red]" in done.stderr


def test_a_name_that_is_not_utf8_is_a_run(tmp_path: Path, ema_avg: Run) -> None:
    """A folder with a name that cannot be decoded is averaged, and listed in ASCII."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/runs/\xff")
    write_series(Path(folder), random_states(2))
    done = ema_avg("batch", "runs", "--decay", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert document(done)["jobs"][0]["status"] == "written"


@pytest.mark.slow
def test_a_batch_imports_no_torch(runs: Path) -> None:
    """Averaging many runs on the CPU needs no torch."""
    code = (
        "import sys\nfrom ema_cli.cli.main import run\n"
        "try:\n    run(['batch', sys.argv[1], '--decay', '0.5', '-q'])\n"
        "except SystemExit as done:\n    assert done.code == 0, done.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(runs)], check=False).returncode == 0


def test_the_index_may_be_a_page(runs: Path, ema_avg: Run) -> None:
    """A row for each run, with working links to its reports, whatever the run is called."""
    (runs / "r1" / "ckpt_200.pt").write_bytes(b"broken")
    evil = runs / 'a"><script>&?#'
    shutil.copytree(runs / "r0", evil)
    (runs.parent / "pages").mkdir()
    done = ema_avg("batch", "runs", "--decay", "0.5", "--report", "{run}/run.html", "--index", "pages/runs.html")
    assert done.returncode in (0, 9), done.stderr
    page = (runs.parent / "pages" / "runs.html").read_text()
    assert page.count("<script") == 1  # that of the page itself
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) >= 4
    for link in links:
        assert link.startswith("./")
        assert (runs.parent / "pages" / unquote(link)).is_file()
    (runs.parent / "pages" / "mine.html").write_text("mine")
    refused = ema_avg("batch", "runs", "--decay", "0.5", "--index", "pages/mine.html")
    assert refused.returncode == 5
