"""The command line as users see it: a process, judged by its streams, its exit status and its files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.main import get_command

from ema_cli._version import __version__
from ema_cli.cli.app import app
from ema_cli.cli.exit import explain
from ema_cli.cli.options import CommandLine
from ema_cli.cli.process import Terminated
from ema_cli.fold.kernel import describe_lane
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared
from ema_cli.report.model import SCHEMA_VERSION
from tests.helpers.program import Run
from tests.helpers.series import write_sparse


def listing(folder: Path) -> set[str]:
    """Return the names in a folder, hidden ones included."""
    return {path.name for path in folder.iterdir()}


def test_the_bare_form_averages(run_folder: Path, ema_avg: Run) -> None:
    """``ema-avg RUN --decay D -o OUT`` writes the average and its report, and nothing else."""
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    expected = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights(run_folder, 100).items()}
    for number, share in zip(range(1, 6), (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2), strict=True):
        for name, value in weights(run_folder, 100 * number).items():
            expected[name] += share * value.double()
    for name, value in load_file(run_folder.parent / "ema.safetensors").items():
        if value.is_floating_point():
            assert torch.equal(value, expected[name].float()), name
        else:
            assert torch.equal(value, weights(run_folder, 500)[name])
    assert listing(run_folder.parent) == {"run", "ema.safetensors", "ema.report.json"}


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the model in a checkpoint, read by torch."""
    loaded: dict[str, torch.Tensor] = torch.load(folder / f"ckpt_{step}.pt", weights_only=False)["model"]
    return loaded


@pytest.mark.parametrize("form", [[], ["average"]])
def test_the_word_average_is_optional(form: list[str], run_folder: Path, ema_avg: Run) -> None:
    """``ema-avg average`` is the bare form."""
    assert ema_avg(*form, run_folder, "--decay", "0.5", "-o", "ema.safetensors").returncode == 0


def test_stdout_has_the_result_and_stderr_all_else(run_folder: Path, ema_avg: Run) -> None:
    """The standard output has one line per output; the plan, the warnings and the summary are on stderr."""
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors")
    assert done.stdout.startswith("wrote ema.safetensors")
    assert done.stdout.count("\n") == 1
    assert "ckpt_300.pt" in done.stderr
    assert 'weights under "model"' in done.stderr
    assert "inside: step" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_json_is_the_report(run_folder: Path, ema_avg: Run) -> None:
    """``--json`` prints exactly the report on stdout, with the bytes of the report file."""
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors", "--json")
    document = json.loads(done.stdout)
    assert document == json.loads((run_folder.parent / "ema.report.json").read_text())
    assert document["schema_version"] == "1.6"
    assert [i["step"] for i in document["inputs"]] == [100, 200, 300, 400, 500]
    assert sum(document["averages"][0]["weights"]) == pytest.approx(1, abs=1e-15)


def test_json_reports_errors_too(ema_avg: Run) -> None:
    """Under ``--json`` a failure is one document with the exit code, the message and the hint."""
    done = ema_avg("missing.pt", "--decay", "0.5", "-o", "ema.safetensors", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"] == {
        "exit_code": 7,
        "message": 'there is no "missing.pt"',
        "hint": "",
    }


def test_json_reports_usage_errors_too(ema_avg: Run) -> None:
    """An option that does not exist is a document under ``--json`` as well."""
    done = ema_avg("a.pt", "--json", "--no-such-option")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_usage_errors_name_the_help_of_their_command(ema_avg: Run) -> None:
    """Not that of the program, which lists the options of the average."""
    for arguments in (["update-bn"], ["verify"], ["diff", "a.pt"], ["plan", "--no-such-option"]):
        assert ema_avg(*arguments).stderr.endswith(f"try: ema-avg {arguments[0]} --help\n")


def test_quiet_says_nothing(run_folder: Path, ema_avg: Run) -> None:
    """``-q`` is silent when all goes well, and still prints an error."""
    done = ema_avg(run_folder, "--decay", "0.999", "-o", "ema.safetensors", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "there is no" in ema_avg("missing.pt", "--decay", "0.9", "-o", "e.safetensors", "-q").stderr


def test_verbose_shows_every_row(tmp_path: Path, ema_avg: Run) -> None:
    """Long tables are shortened in the middle, unless ``-v`` asks for all rows."""
    for step in range(40):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"s_{step}.safetensors")
    short = ema_avg("plan", "s_*.safetensors", "--decay", "0.5").stdout
    assert "s_20.safetensors" not in short
    assert "16 more (-v shows them)" in short
    assert "s_20.safetensors" in ema_avg("plan", "s_*.safetensors", "--decay", "0.5", "-v").stdout


def test_plan_writes_nothing(run_folder: Path, ema_avg: Run) -> None:
    """``plan`` and ``--dry-run`` show the shares on stdout, warnings on stderr, and leave no file."""
    for arguments in (["plan", run_folder], [run_folder, "--dry-run"], [run_folder, "-n"]):
        done = ema_avg(*arguments, "--decay", "0.999", "-o", "ema.safetensors")
        assert done.returncode == 0
        assert "99.6 %" in done.stdout
        assert done.stderr.startswith("warning: ")
        assert "first-dominates" in done.stderr
    assert listing(run_folder.parent) == {"run"}


def test_plan_json(run_folder: Path, ema_avg: Run) -> None:
    """``plan --json`` has the order, the shares, the tensors and the bytes."""
    document = json.loads(ema_avg("plan", run_folder, "--decay", "0.9", "--half-life", "2", "--json").stdout)
    assert document["error"]["exit_code"] == 2
    document = json.loads(ema_avg("plan", run_folder, "--decay", "0.9", "--decay", "0.5", "--json").stdout)
    assert [average["method"]["decay"] for average in document["averages"]] == [0.9, 0.5]
    assert {tensor["action"] for tensor in document["tensors"]} == {"averaged", "copied"}
    assert document["bytes_read"] == 5 * (5 * 6 + 5 + 4 * 5 + 2 * 5 + 2) * 4 + 8
    assert document["bytes_written"] > 2 * document["bytes_read"] / 5


def test_plan_reports_that_the_output_exists(run_folder: Path, ema_avg: Run) -> None:
    """The plan names what would stop the run."""
    (run_folder.parent / "ema.safetensors").write_bytes(b"something else")
    done = ema_avg("plan", run_folder, "--decay", "0.9", "-o", "ema.safetensors")
    assert done.returncode == 0
    assert "output-in-the-way" in done.stderr


def test_without_a_decay_the_choices_are_shown(run_folder: Path, ema_avg: Run) -> None:
    """There is no default decay: the error shows the effect of some on these checkpoints."""
    done = ema_avg(run_folder, "-o", "ema.safetensors")
    assert done.returncode == 2
    assert "For these 5 checkpoints" in done.stderr
    assert "--decay 0.999" in done.stderr
    assert "99.6 %" in done.stderr


def test_rerun_is_up_to_date_and_a_different_one_is_refused(run_folder: Path, ema_avg: Run) -> None:
    """The same command does nothing; another average does not overwrite unless forced."""
    first = ["--decay", "0.5", "-o", "ema.safetensors"]
    assert ema_avg(run_folder, *first).returncode == 0
    before = (run_folder.parent / "ema.safetensors").stat()
    again = ema_avg(run_folder, *first)
    assert again.returncode == 0
    assert again.stdout.startswith("up to date ema.safetensors")
    assert (run_folder.parent / "ema.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    other = ema_avg(run_folder, "--decay", "0.6", "-o", "ema.safetensors")
    assert other.returncode == 5
    assert "--force" in other.stderr
    assert ema_avg(run_folder, "--decay", "0.6", "-o", "ema.safetensors", "--force").returncode == 0


def test_an_output_in_the_run_folder_is_known_again(run_folder: Path, ema_avg: Run) -> None:
    """A previous average ``ema.safetensors`` among the checkpoints may be overwritten; a foreign file may not."""
    arguments = [run_folder, "--decay", "0.5", "-o", run_folder / "ema.safetensors"]
    assert ema_avg(*arguments).returncode == 0
    assert ema_avg(*arguments).stdout.startswith("up to date")
    assert ema_avg(run_folder, "--decay", "0.6", *arguments[3:], "--force").returncode == 0
    save_file({"w": torch.zeros(2)}, run_folder / "ema.safetensors")
    assert ema_avg(*arguments, "--force").returncode == 2


def test_strict_turns_a_warning_into_exit_8(run_folder: Path, ema_avg: Run) -> None:
    """``--strict`` publishes nothing when there is a warning."""
    done = ema_avg(run_folder, "--decay", "0.999", "-o", "ema.safetensors", "--strict")
    assert done.returncode == 8
    assert listing(run_folder.parent) == {"run"}


def test_several_decays_in_one_read(run_folder: Path, ema_avg: Run) -> None:
    """Two decays give two outputs, two reports and two lines; the file names contain the decays."""
    done = ema_avg(
        run_folder, "--decay", "0.5", "--decay", "0.9", "-o", "ema_{decay}.safetensors", "--report", "all.json"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 2
    assert listing(run_folder.parent) == {
        "run",
        "ema_0.5.safetensors",
        "ema_0.5.report.json",
        "ema_0.9.safetensors",
        "ema_0.9.report.json",
        "all.json",
    }
    assert len(json.loads((run_folder.parent / "all.json").read_text())["averages"]) == 2
    assert len(json.loads((run_folder.parent / "ema_0.9.report.json").read_text())["averages"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.pt", "--decay", "0.9"], 7, 'there is no "missing.pt"'),
        (["no_*.pt", "--decay", "0.9"], 7, "no file matches"),
        (["http://127.0.0.1:1/*.pt", "--decay", "0.9"], 7, "a web server cannot list its files: name them"),
        (["empty.pt", "--decay", "0.9"], 3, "is empty"),
        (["text.pt", "--decay", "0.9"], 3, "is not a checkpoint"),
        (["cut.pt", "--decay", "0.9"], 3, "truncated"),
        (["folder.pt", "--decay", "0.9"], 7, "no checkpoint in"),
        (["run/ckpt_100.pt", "other.pt", "--decay", "0.9"], 3, "not of one model"),
        (["run", "--decay", "1"], 2, "not in [0, 1)"),
        (["run", "--decay", "99.9"], 2, "--decay 0.999 (a decay is a share, not a percentage)"),
        (["run", "--decay", "0.9", "--half-life", "3"], 2, "same thing"),
        (["run", "--decay", "0.9", "--report", "page.pdf"], 2, "no report format"),
        (["run", "--decay", "0.9", "--device", "tpu"], 2, "--device"),
        (["run", "--decay", "0.9", "--key", "nothing"], 2, "--key"),
        (["run", "--decay", "0.9", "--steps", "1,2"], 2, "--steps"),
        (["run", "--decay", "0.9", "--include", "("], 2, "regular expression"),
        (["run", "--decay", "0.9", "--max-memory", "much"], 2, "not a size"),
        (["run", "--decay", "0.9", "--metadata", "novalue"], 2, "KEY=VALUE"),
        (["nan.safetensors", "--decay", "0.9"], 3, "holds nan at index (1,)"),
        (["paln"], 2, "there is no command or file"),
    ],
)
def test_failures_are_one_clear_message(
    arguments: list[str], code: int, words: str, run_folder: Path, ema_avg: Run
) -> None:
    """A user's or a file's fault has its exit code and its message; no traceback, no output, no leftovers."""
    folder = run_folder.parent
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("this is a note, not a checkpoint")
    (folder / "cut.pt").write_bytes((run_folder / "ckpt_100.pt").read_bytes()[:3000])
    (folder / "folder.pt").mkdir()
    torch.save({"w": torch.zeros(3)}, folder / "other.pt")
    save_file({"w": torch.tensor([0.0, float("nan")])}, folder / "nan.safetensors")
    before = listing(folder)
    done = ema_avg(*arguments, "-o", "ema.safetensors")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert listing(folder) == before


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, ema_avg: Run) -> None:
    """A checkpoint with a call of os.system in its pickle is read for its weights; the call is not made."""

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    for step in (1, 2):
        torch.save({"model": {"w": torch.full((3,), float(step))}, "extra": Payload()}, tmp_path / f"x_{step}.pt")
    assert ema_avg("x_*.pt", "--decay", "0.5", "-o", "ema.safetensors").returncode == 0
    assert load_file(tmp_path / "ema.safetensors")["w"].tolist() == [1.5, 1.5, 1.5]
    assert not (tmp_path / "canary").exists()


def test_all_differences_are_reported_at_once(tmp_path: Path, ema_avg: Run) -> None:
    """Names, shapes and kinds that differ are collected over all checkpoints."""
    save_file({"a": torch.zeros(2), "b": torch.zeros(2), "n": torch.zeros(1)}, tmp_path / "s_1.safetensors")
    save_file({"a": torch.zeros(3), "c": torch.zeros(2), "n": torch.zeros(1)}, tmp_path / "s_2.safetensors")
    save_file(
        {"a": torch.zeros(3), "c": torch.zeros(2), "n": torch.zeros(1, dtype=torch.int64)}, tmp_path / "s_3.safetensors"
    )
    done = ema_avg("s_*.safetensors", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 3
    for words in ('"b"', '"c"', "shape (2,)", "float32", "int64"):
        assert words in done.stderr


def test_names_from_files_cannot_speak_to_the_terminal(tmp_path: Path, ema_avg: Run) -> None:
    """Escape sequences, markup and line breaks in tensor names are escaped."""
    name = "x\x1b[31m[red]\n::error::y"
    for step in (1, 2):
        save_file({name: torch.tensor([step, float("inf")])}, tmp_path / f"s_{step}.safetensors")
    done = ema_avg("s_*.safetensors", "--decay", "0.5", "-o", "ema.safetensors", FORCE_COLOR="1")
    assert done.returncode == 3
    assert "\x1b[31m[red]" not in done.stderr
    assert "\n::error::" not in done.stderr
    assert "[red]" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    """An interrupted run removes its partial file, keeps the old output, and exits with 128 + n."""
    for step in range(6):
        write_sparse(tmp_path / "run" / f"s_{step}.safetensors", w=40_000_000)
    (tmp_path / "ema.safetensors").write_bytes(b"the old one")
    slowly = ["--threads", "1", "--sha256"]  # long enough to be interrupted
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", "run", "--decay", "0.5", "-o", "ema.safetensors", "--force", *slowly],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".ema.safetensors.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 128 + number, talk
    assert (tmp_path / "ema.safetensors").read_bytes() == b"the old one"
    assert not list(tmp_path.glob(".*"))
    assert "no output was changed" in talk


def test_a_closed_stdout_does_not_undo_the_result(run_folder: Path) -> None:
    """The output decides the exit status; a reader that closed the pipe does not."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ema_cli", str(run_folder), "--decay", "0.5", "-o", "ema.safetensors"]
    done = subprocess.run(command, cwd=run_folder.parent, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert (run_folder.parent / "ema.safetensors").exists()


def test_no_color_and_forced_color(run_folder: Path, ema_avg: Run) -> None:
    """Color follows NO_COLOR, --no-color and FORCE_COLOR; a log is never animated."""
    plain = ema_avg("plan", run_folder, "--decay", "0.999")
    assert "\x1b" not in plain.stderr
    forced = ema_avg("plan", run_folder, "--decay", "0.999", FORCE_COLOR="1")
    assert "\x1b[" in forced.stderr
    assert "\x1b[?25l" not in forced.stderr
    assert "\x1b[33m" not in ema_avg("plan", run_folder, "--decay", "0.999", "--no-color", FORCE_COLOR="1").stderr


def test_inspect(run_folder: Path, ema_avg: Run) -> None:
    """``inspect`` shows format, key of the weights, step, types, and the other entries of the file."""
    done = ema_avg("inspect", run_folder / "ckpt_100.pt", "-v")
    assert done.returncode == 0
    for words in ("torch zip", 'under "model"', "step 100", "float32", "optimizer", "0.weight", "(5, 6)"):
        assert words in done.stdout
    document = json.loads(ema_avg("inspect", run_folder / "ckpt_100.pt", "--json").stdout)
    assert document["checkpoints"][0]["key"] == "model"
    assert document["schema_version"] == SCHEMA_VERSION


def test_a_command_without_checkpoints_shows_itself(ema_avg: Run) -> None:
    """The example in the hint is one of the same command."""
    for command in ("plan", "inspect"):
        done = ema_avg(command)
        assert (done.returncode, f"try: ema-avg {command} CKPT..." in done.stderr) == (2, True)
    assert "try: ema-avg CKPT..." in ema_avg("average").stderr


def test_version(ema_avg: Run) -> None:
    """``--version`` and ``version`` print the version in a line of its own, and what the fold uses on the CPU."""
    for word in ("--version", "version"):
        assert ema_avg(word).stdout == f"ema-avg {__version__}\nfold on the CPU: {describe_lane()}\n"


def test_help_is_one_screen(ema_avg: Run) -> None:
    """The first page has the examples, every command, the options that most runs need, and where the rest is."""
    shown = ema_avg("--help", COLUMNS="100").stdout
    assert len(shown.splitlines()) <= 45
    assert "-o, --output PATH" in shown
    for words in ("ema-avg run/ --decay 0.9", "-h, --help", "--install-completion", "--version", "average --help"):
        assert words in shown
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n  {command} " in shown
    assert ema_avg("-h", COLUMNS="100").stdout == shown


def test_help_of_the_main_job_has_all_options(ema_avg: Run) -> None:
    """The help of ``average`` shows every option in panels."""
    shown = ema_avg("average", "--help", COLUMNS="160").stdout
    for words in ("--decay", "Inputs", "Weights", "Compute", "Output", "Run", "[default: found", "help methods"):
        assert words in shown


@pytest.mark.parametrize("width", ["60", "80", "100"])
def test_choices_are_not_split_inside_a_word(ema_avg: Run, width: str) -> None:
    """In the help of a narrow terminal a line ends between two choices."""
    shown = ema_avg("average", "--help", COLUMNS=width).stdout
    words = set(re.findall(r"[\w-]+", shown))
    for one in (*declared(Options), *declared(CommandLine)):
        assert words.issuperset(one.choices)


def test_an_unknown_option_names_the_nearest_one(ema_avg: Run) -> None:
    """The error says what the nearest option does and where the others are; a word without one just the latter."""
    error = ema_avg("run", "--decy", "0.9").stderr
    assert error.startswith("error: there is no option --decy\n  try: --decay D (d of E_n")
    assert "all options: ema-avg average --help" in error
    assert "--output-only (" in ema_avg("verify", "x", "--outptu-only").stderr
    assert "--version (" in ema_avg("--versoin").stderr
    for word, flag in (("-decay", "--decay D"), ("-half-life=3", "--half-life H")):
        shown = word.partition("=")[0]
        assert ema_avg("run", word).stderr.startswith(f"error: there is no option {shown}\n  try: {flag} (")
    assert ema_avg("plan", "-z").stderr == "error: there is no option -z\n  try: ema-avg plan --help\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--decay", "0,8"], 'error: --decay "0,8" is not a number\n  try: write a point: --decay 0.8\n'),
        (["--half-life=1,5"], 'error: --half-life "1,5" is not a number\n  try: write a point: --half-life 1.5\n'),
        (["--decay", "0,8,9"], 'error: --decay "0,8,9" is not a number\n'),
        (["--decay", "many"], 'error: --decay "many" is not a number\n'),
        (["--every", "2,5"], 'error: --every "2,5" is not a whole number\n'),
    ],
)
def test_a_number_has_a_point(arguments: list[str], error: str, run_folder: Path, ema_avg: Run) -> None:
    """What is no number is named with its option; for a number with a comma, the error has the number to write."""
    done = ema_avg(run_folder, *arguments)
    assert (done.returncode, done.stderr) == (2, error)


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        ("libcudart.so.12: cannot open shared object file: No such file or directory", "install the package"),
        ("libm.so: failed to map segment from shared object", "ulimit -a"),
    ],
)
def test_a_library_that_cannot_be_loaded(failure: str, hint: str) -> None:
    """One that is missing must be installed; others fail if the memory is limited."""
    error, code = explain(ImportError(failure))
    assert (code, error.message) == (71, f"a library cannot be loaded: {failure}")
    assert error.hint.startswith(hint)


def test_a_signal_while_a_class_is_made() -> None:
    """Until 3.11, Python wraps what ``__set_name__`` raises in a RuntimeError: it is no bug."""

    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise Terminated(signal.SIGINT)

    with pytest.raises((RuntimeError, Terminated)) as raised:
        type("Record", (), {"field": Interrupted()})
    error, code = explain(raised.value)
    assert (code, error.message) == (130, "interrupted by SIGINT; no output was changed")


def test_no_arguments_show_the_help(ema_avg: Run) -> None:
    """Without arguments the help is shown, and the exit status says that nothing was done."""
    done = ema_avg()
    assert done.returncode == 2
    assert "Usage: ema-avg" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_the_output_among_the_inputs_is_refused(run_folder: Path, ema_avg: Run) -> None:
    """A checkpoint is never overwritten by the average of its run."""
    save_file({"w": torch.zeros(2)}, run_folder.parent / "s_1.safetensors")
    save_file({"w": torch.ones(2)}, run_folder.parent / "s_2.safetensors")
    done = ema_avg("s_1.safetensors", "s_2.safetensors", "--decay", "0.5", "-o", "s_2.safetensors", "--force")
    assert done.returncode == 2
    assert load_file(run_folder.parent / "s_2.safetensors")["w"].tolist() == [1, 1]


def test_a_previous_average_that_matches_a_pattern_is_skipped(tmp_path: Path, ema_avg: Run) -> None:
    """``ckpt_*.safetensors`` also matches a previous average there: it is named, and not folded."""
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"ckpt_{step}.safetensors")
    assert ema_avg("ckpt_*.safetensors", "--decay", "0.5", "-o", "ckpt_ema.safetensors").returncode == 0
    done = ema_avg(
        "ckpt_1.safetensors", "ckpt_2.safetensors", "ckpt_ema.safetensors", "--decay", "0.6", "-o", "two.safetensors"
    )
    assert done.returncode == 0
    assert 'skipped "ckpt_ema.safetensors": an output of ema-avg' in done.stderr


def test_names_without_a_step_among_others_are_warned_about(tmp_path: Path, ema_avg: Run) -> None:
    """A file without a number among numbered ones makes the order doubtful, and ``--strict`` fails."""
    for name in ("model_100", "model_200", "export"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    done = ema_avg("plan", "*.safetensors", "--decay", "0.5", "--strict")
    assert done.returncode == 8
    assert "steps-incomplete" in done.stderr
    assert "2 of 3 checkpoints have a step (name)" in done.stderr
    assert '"export.safetensors"' in done.stderr


def test_one_step_in_two_folders_is_refused(tmp_path: Path, ema_avg: Run) -> None:
    """Equal file names in two folders are two copies of one step, not two steps."""
    for folder in ("a1", "b"):
        (tmp_path / folder).mkdir()
        for step in (100, 200):
            save_file({"w": torch.zeros(2)}, tmp_path / folder / f"model_{step}.safetensors")
    done = ema_avg("plan", "a1", "b", "--decay", "0.5")
    assert done.returncode == 3
    assert '100: "a1/model_100.safetensors", "b/model_100.safetensors"; 200: "a1/' in done.stderr
    assert "average each by itself: ema-avg batch a1 b --decay 0.5 --dry-run" in done.stderr


def test_an_empty_argument_is_an_unset_variable(ema_avg: Run) -> None:
    """An empty name never means the current folder."""
    done = ema_avg("", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 2
    assert "empty" in done.stderr


def test_a_newer_last_checkpoint_is_used(run_folder: Path, ema_avg: Run) -> None:
    """``last.ckpt`` is skipped as a copy, unless the step inside is beyond all others and its weights are its own."""
    newest = torch.load(run_folder / "ckpt_500.pt", weights_only=False)
    for step in (500, 550):
        torch.save({**newest, "step": step}, run_folder / "last.ckpt")
        assert 'skipped "run/last.ckpt"' in ema_avg("plan", "run", "--decay", "0.5").stdout
    model = {name: value + 1 for name, value in newest["model"].items()}
    torch.save({**newest, "model": model, "step": 550}, run_folder / "last.ckpt")
    plan = json.loads(ema_avg("plan", "run", "--decay", "0.5", "--json").stdout)
    assert [i["step"] for i in plan["inputs"]] == [100, 200, 300, 400, 500, 550]


def test_an_output_that_was_changed_is_not_up_to_date(run_folder: Path, ema_avg: Run) -> None:
    """A flipped byte is noticed on the next run; a touched output with the same bytes is still up to date."""
    arguments = [run_folder, "--decay", "0.5", "-o", "ema.safetensors"]
    assert ema_avg(*arguments).returncode == 0
    output = run_folder.parent / "ema.safetensors"
    later = output.stat().st_mtime + 10
    os.utime(output, (later, later))
    assert ema_avg(*arguments).stdout.startswith("up to date")
    damaged = bytearray(output.read_bytes())
    damaged[-1] ^= 1
    output.write_bytes(damaged)
    os.utime(output, (later, later))
    done = ema_avg(*arguments)
    assert done.returncode == 5
    assert "changed after it was written" in done.stderr


def test_averages_that_are_not_finite_are_warned_about(tmp_path: Path, ema_avg: Run) -> None:
    """``--allow-nonfinite`` folds NaN, and says so."""
    for step in (1, 2):
        save_file({"w": torch.tensor([step, float("nan")])}, tmp_path / f"s_{step}.safetensors")
    done = ema_avg("s_*.safetensors", "--decay", "0.5", "-o", "ema.safetensors", "--allow-nonfinite")
    assert done.returncode == 0
    assert "nonfinite-written" in done.stderr


def test_plan_names_a_folder_that_cannot_be_made(run_folder: Path, ema_avg: Run) -> None:
    """The plan reports what would stop the run: a file in place of a folder above the output."""
    done = ema_avg("plan", run_folder, "--decay", "0.5", "-o", f"{run_folder}/ckpt_100.pt/ema.safetensors")
    assert done.returncode == 0
    assert "output-in-the-way" in done.stderr
    assert "is a file, not a folder" in done.stderr


def test_a_checkpoint_that_was_found_is_never_overwritten(tmp_path: Path, ema_avg: Run) -> None:
    """No selection, ``--force`` or ``--report`` lets a run overwrite an input."""
    for step in (1, 2, 3):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"c_{step}.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "in.json")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    names = ["c_1.safetensors", "c_2.safetensors", "c_3.safetensors"]
    for arguments in (
        [*names, "--last", "2", "-o", "c_1.safetensors", "--force"],
        ["in.json", "c_2.safetensors", "-o", "o.safetensors", "--report", "in.json", "--order", "name", "--force"],
    ):
        assert ema_avg(*arguments, "--decay", "0.5").returncode == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("place", ["folder", "link", "fifo", "foreign"])
def test_what_is_in_the_way_is_found_before_the_work(place: str, run_folder: Path, ema_avg: Run) -> None:
    """A folder, a link, a FIFO or a foreign file where the report belongs is an error, and nothing is published."""
    report = run_folder.parent / "ema.report.json"
    match place:
        case "folder":
            report.mkdir()
        case "link":
            report.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(report)
        case _:
            report.write_text('{"lr": 0.1}')
    before = listing(run_folder.parent)
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 5, done.stderr
    assert "ema.report.json" in done.stderr
    assert listing(run_folder.parent) == before


def test_a_full_standard_output_fails_the_document(run_folder: Path) -> None:
    """A document that cannot be written is a failure, because it is the product; standard error has the reason."""
    output = ["-o", str(run_folder / "ema.safetensors"), "-q"]
    full_disk = "standard output cannot be written: No space left on device"
    for words, end, status in (
        (["plan", str(run_folder)], "", 5),
        (["average", str(run_folder), *output], "; the outputs and their reports were written", 5),
        (["average", str(run_folder), *output], "; the outputs were up to date", 5),
        (["plan", str(run_folder / "none")], "", 7),
    ):
        command = [sys.executable, "-m", "ema_cli", *words, "--decay", "0.5", "--json"]
        with open("/dev/full", "w") as full:  # noqa: PTH123
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == status
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert status == 7 or errors[0] == f"error: {full_disk}{end}"


def test_without_standard_streams_the_output_is_written(run_folder: Path) -> None:
    """Closed standard streams do not matter."""
    command = f"exec {sys.executable} -m ema_cli run --decay 0.5 -o ema.safetensors >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", command], cwd=run_folder.parent, check=False).returncode == 0
    assert (run_folder.parent / "ema.safetensors").exists()


def test_the_wrong_prefix_is_a_usage_error(run_folder: Path, ema_avg: Run) -> None:
    """A prefix that the names do not have is reported; no file is skipped because of it."""
    assert ema_avg("plan", run_folder, "--decay", "0.5", "--strip-prefix", "z.").returncode == 2


@pytest.mark.parametrize(
    ("checkpoint", "code", "words"),
    [
        ({"vae": {"w": 1}, "upscaler": {"w": 1}}, 3, "several models"),
        ({"model": {"layers": [{"w": 1}, {"w": 1}], "head": 1}}, 3, "in a list"),
        ({"models": [{"w": 1}], "loss": 0}, 3, "no state dict found"),
        ({"state_dict": {"model": {"w": 1}, "optimizer": {"w": {"exp_avg": 1}}}}, 0, 'under "state_dict.model"'),
    ],
)
def test_no_part_of_a_model_is_dropped_in_silence(
    checkpoint: dict[str, object], code: int, words: str, tmp_path: Path, ema_avg: Run
) -> None:
    """A tensor that could be part of the model is used, or the checkpoint is refused."""

    def tensors(value: object) -> object:
        if isinstance(value, dict):
            return {name: tensors(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [tensors(inner) for inner in value]
        return torch.tensor(0.5) if value == 0 else torch.ones(3)

    for step in (1, 2):
        torch.save(tensors(checkpoint), tmp_path / f"x_{step}.pt")
    done = ema_avg("plan", "x_1.pt", "x_2.pt", "--decay", "0.5")
    assert done.returncode == code, done.stderr
    assert words in (done.stderr if code else done.stdout)


def test_numbers_that_are_no_steps_make_the_order_doubtful(tmp_path: Path, ema_avg: Run) -> None:
    """Names with numbers that cannot be read as steps are folded by name, with a warning."""
    for name in ("model-5x", "model-10x", "model-20x"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    done = ema_avg("plan", "*.safetensors", "--decay", "0.5")
    assert "order-doubtful" in done.stderr


def test_an_empty_view_may_begin_anywhere(tmp_path: Path, ema_avg: Run) -> None:
    """A view without elements is read although its offset is beyond its storage, as torch reads it."""
    for step in (1, 2):
        weights = {"w": torch.ones(3), "e": torch.zeros(0).as_strided((0, 3), (3, 1), 7)}
        torch.save(weights, tmp_path / f"x_{step}.pt")
    done = ema_avg("x_1.pt", "x_2.pt", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "ema.safetensors")["e"].shape == (0, 3)


def test_few_descriptors_leave_no_checkpoint_out(tmp_path: Path) -> None:
    """Files that cannot all be open at once take turns: none is missing from the average."""
    for step in range(40):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"s_{step}.safetensors")
    command = (
        f"ulimit -n 20; exec {sys.executable} -m ema_cli {tmp_path} --method uniform -o {tmp_path / 'm.safetensors'}"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "m.safetensors")["w"].tolist() == [19.5, 19.5]


def test_an_ignored_hangup_stays_ignored(run_folder: Path) -> None:
    """Under ``nohup`` the end of a session does not end the run."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from ema_cli.cli.process import install_signals; install_signals()\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "assert callable(signal.getsignal(signal.SIGTERM))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=run_folder, check=False).returncode == 0
