"""Passwords, signatures and tokens reach the server that asks for them, and nothing that is written or shown."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ema_cli
from ema_cli.cli.config.settings import PREFIX
from ema_cli.cli.exit import DEBUG_VARIABLE, describe_bug
from ema_cli.cli.main import run
from ema_cli.cli.process import guarded
from ema_cli.errors import EmaAvgError, InputRefused, RunWarning
from ema_cli.events import Event, Progress
from ema_cli.options.average import Options, make_options
from ema_cli.options.declaration import declared
from ema_cli.pipeline import run_average
from ema_cli.report.redaction import REMOVED
from ema_cli.storage.locations import common_folder, labels, locate
from ema_cli.storage.remote import retries
from ema_cli.storage.url import Url
from ema_cli.text import HIDDEN, is_redacted, quoted, safe_text, without_secrets
from tests.helpers.demanding_server import DemandingServer
from tests.helpers.program import Run

MARK = "xq7Zk"
"""In every part of every planted secret."""
LOGIN = f"user{MARK}:pass%40{MARK}"
TOKEN = f"hf_{MARK}abcdefABCDEFabcdefABCDEF1234"
SIGNATURE = f"X-Amz-Credential=AKIA{MARK}%2Feu&X-Amz-Signature={MARK}/{MARK}//{MARK}+{MARK}==&key=%2B{MARK}"
URL = f"https://{LOGIN}@127.0.0.1:9/{{}}.safetensors?{SIGNATURE}#{MARK}"
"""A place where nobody listens."""
BLANK = f"https://127.0.0.1:9/my file.pt?k=1 {MARK} {MARK}"
"""An address with blanks, as a shell passes it on."""
BLANK = f"https://127.0.0.1:9/my file.pt?k=1 {MARK} {MARK}"
"""An address with blanks, as a shell passes it on."""
BUG, LARGEST_CODE = 70, 10


def planted(text: str | bytes) -> list[str]:
    """Return every place of a text that has a part of a secret."""
    raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    pieces = raw.lower().split(MARK.lower().encode())
    return [f"{before[-60:]!r} ... {after[:20]!r}" for before, after in pairwise(pieces)]


def check_files(folder: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """Search the name and every byte of every file for the secrets; return the names."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        assert not planted(name), name
        if path.is_file() and name not in but:
            assert not planted(path.read_bytes()), (name, planted(path.read_bytes()))
            names.append(name)
    return names


class Searched:
    """A way to run the program that searches all that it shows and writes."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self.folder = folder
        self.given: tuple[str, ...] = ()
        """Files with secrets that the test itself wrote."""

    def __call__(self, *arguments: object, **environment: str) -> Any:
        """Run; return the finished process."""
        done = self._run(*arguments, **environment)
        assert not planted(done.stdout), (arguments, planted(done.stdout))
        assert not planted(done.stderr), (arguments, planted(done.stderr))
        assert done.returncode < BUG, done.stderr
        check_files(self.folder, but=self.given)
        return done


@pytest.fixture
def searched(ema_avg: Run, tmp_path: Path) -> Searched:
    """Run the program in the folder of the test."""
    return Searched(ema_avg, tmp_path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Searched:
    """Run the program in this process, which takes a moment: for runs that fail early."""
    monkeypatch.setattr(retries, "RETRY_DELAY_SECONDS", 0)

    def run_here(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        with monkeypatch.context() as changed:
            changed.chdir(tmp_path)
            for stream in ("stdout", "stderr"):
                changed.setattr(sys, stream, getattr(sys, stream))
            for name, value in environment.items():
                changed.setenv(name, value)
            changed.setattr(sys, "argv", ["ema-avg", *words])
            with pytest.raises(SystemExit) as ended:
                run(words)
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), *capsys.readouterr())

    return Searched(run_here, tmp_path)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemandingServer]:
    """Three checkpoints behind a password and a signature."""
    folder = tmp_path_factory.mktemp("web")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40_000, generator=generator)
    for step in (100, 200, 300):
        noise = torch.randn(40_000, generator=generator)
        save_file({"w": start + 0.1 * noise, "b": noise[:7].clone()}, folder / f"ckpt_{step}.safetensors")
    with DemandingServer(folder, login=LOGIN, query=SIGNATURE).serving() as served:
        yield served


def addresses(server: DemandingServer, *steps: int) -> list[str]:
    """Return the addresses of the checkpoints."""
    return [server.address(f"ckpt_{step}.safetensors") for step in steps or (100, 200, 300)]


# Runs that need the secret


def test_a_run_with_secrets_everywhere(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """The average is that of the files; the pages, the header, the step summary and the streams have no secret."""
    (tmp_path / "summary").touch()
    searched.given = ("ema-avg.toml",)
    (tmp_path / "ema-avg.toml").write_text(f'metadata = ["source={server.address("x", query="k=" + MARK)}"]\n')
    flags = ["--decay", 0.5, "--sha256", "--report=r.html", "--report", "r.md", "--report", "all.json"]
    more = ["--metadata", f"token={TOKEN}", "--metadata", f"from={addresses(server)[0]}"]
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary", "GITHUB_OUTPUT": "outputs"}
    done = searched(*addresses(server), *flags, *more, "-o", "ema.safetensors", "-v", **github)
    assert done.returncode == 0, done.stderr
    assert server.refused == 0
    assert len(server.asked) > 6
    report = json.loads((tmp_path / "ema.report.json").read_text())
    assert report["command"]["secrets_removed"] is True
    assert [known["step"] for known in report["inputs"]] == [100, 200, 300]
    assert [known["path"] for known in report["inputs"]] == [
        f"http://{HIDDEN}@{server.site}/ckpt_{step}.safetensors?{HIDDEN}" for step in (100, 200, 300)
    ]
    assert all(is_redacted(known["path"]) for known in report["inputs"])
    assert REMOVED in (tmp_path / "r.html").read_text()
    assert "were removed from this report" in (tmp_path / "r.md").read_text()
    assert "were removed from this report" in (tmp_path / "summary").read_text()
    with safe_open(tmp_path / "ema.safetensors", "pt") as opened:
        header = opened.metadata()
    assert json.loads(header["ema_avg.folded"]) == ["ckpt_100", "ckpt_200", "ckpt_300"]
    assert (header["token"], header["from"]) == (f"hf_{HIDDEN}", report["inputs"][0]["path"])
    ema_cli.average(server.folder, decay=0.5, output=tmp_path / "near.safetensors")
    for name, tensor in load_file(tmp_path / "near.safetensors").items():
        assert load_file(tmp_path / "ema.safetensors")[name].equal(tensor)


def test_nothing_depends_on_the_signature(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """With a new signature an output is up to date, a continued average knows its checkpoints, bytes are the same."""
    flags = ("--decay", 0.5, "-o")
    assert searched(*addresses(server, 100, 200), *flags, "a.safetensors").returncode == 0
    before = (tmp_path / "a.safetensors").read_bytes()
    server.query = f"X-Amz-Signature=another{MARK}/{MARK}"
    assert "up to date" in searched(*addresses(server, 100, 200), *flags, "a.safetensors").stdout
    assert searched(*addresses(server, 100, 200), *flags, "b.safetensors").returncode == 0
    assert (tmp_path / "b.safetensors").read_bytes() == before
    done = searched(*addresses(server), "--continue-from", "a.safetensors", "-o", "c.safetensors")
    assert done.returncode == 0, done.stderr
    assert "1 new checkpoint" in done.stderr
    assert "already in" in searched("plan", *addresses(server), "--continue-from", "a.safetensors", "-v").stdout


def test_a_previous_average_behind_a_password(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """``--continue-from`` opens the real address, from a flag, a variable or a configuration file."""
    ema_cli.average(
        [server.folder / f"ckpt_{n}.safetensors" for n in (100, 200)], decay=0.5, output=server.folder / "a.safetensors"
    )
    previous, new = server.address("a.safetensors"), addresses(server, 300)[0]
    ways: list[tuple[tuple[str, ...], dict[str, str], str]] = [
        (("--continue-from", previous), {}, ""),
        ((f"--continue-from={previous}",), {}, ""),
        ((), {"EMA_AVG_CONTINUE_FROM": previous}, ""),
        (("--config", "own.toml"), {}, f'continue-from = "{previous}"'),
    ]
    searched.given = ("own.toml",)
    for number, (flags, environment, table) in enumerate(ways):
        (tmp_path / "own.toml").write_text(table)
        done = searched(new, *flags, "-o", f"{number}.safetensors", **environment)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{number}.safetensors").read_bytes() == (tmp_path / "0.safetensors").read_bytes()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_other_commands_with_secrets(
    as_json: bool, server: DemandingServer, searched: Searched, tmp_path: Path
) -> None:
    """Plan, inspect, diff, verify and the report on standard output show no secret, and reach the server."""
    flags = ["--json"] if as_json else []
    first, second, _ = addresses(server)
    for words in (["plan", first, second, "--decay", 0.5], ["inspect", first], ["diff", first, second]):
        done = searched(*words, *flags)
        assert done.returncode in (0, 1), done.stderr
        assert not as_json or json.loads(done.stdout)
    assert server.refused == 0
    done = searched(first, second, "--decay", 0.5, "-o", "ema.safetensors", *flags)
    assert done.returncode == 0
    assert not as_json or json.loads(done.stdout)["command"]["secrets_removed"]
    done = searched("verify", "ema.safetensors", "--output-only", "-v", *flags)
    assert done.returncode == 0
    assert "removed from it" in done.stdout + done.stderr
    assert searched("verify", "ema.safetensors", *flags).returncode == LARGEST_CODE
    (server.folder / "ema.safetensors").write_bytes((tmp_path / "ema.safetensors").read_bytes())
    (server.folder / "ema.report.json").write_bytes((tmp_path / "ema.report.json").read_bytes())
    server.query = ""
    searched("verify", server.address("ema.safetensors", query=SIGNATURE), "--output-only", *flags)


def test_a_batch_with_secrets(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """A manifest has addresses with secrets; one job succeeds, others fail; neither index has a secret."""
    good = ", ".join(f'"{address}"' for address in addresses(server))
    bad = server.address("ckpt_100.safetensors", query=f"sig=wrong{MARK}")
    (tmp_path / "jobs.toml").write_text(
        f'[defaults]\ndecay = 0.5\n[[job]]\npaths = [{good}]\noutput = "{{name}}.safetensors"\n'
        f'[[job]]\npaths = ["{bad}"]\noutput = "bad.safetensors"\n'
        f'[[job]]\nrun = "{URL.format("run")}"\noutput = "worse.safetensors"\n'
    )
    searched.given = ("jobs.toml",)
    for index in ("index.html", "index.json"):
        done = searched("batch", "--manifest", "jobs.toml", "--index", index)
        assert done.returncode == 9, done.stderr
    document = json.loads((tmp_path / "index.json").read_text())
    assert [job["status"] for job in document["jobs"]] == ["up_to_date", "failed", "failed"]
    assert document["command"]["secrets_removed"] is True
    assert "were removed" in (tmp_path / "index.html").read_text()
    searched("batch", "--manifest", "jobs.toml", "--json")
    searched("batch", URL.format("a"), bad, "--decay", 0.5)


# Every option


@pytest.mark.parametrize("address", [URL, BLANK], ids=["address", "blanks"])
@pytest.mark.parametrize("one", declared(Options), ids=lambda one: str(one.key))
def test_no_option_shows_a_secret(one: Any, address: str, at_once: Searched, tmp_path: Path) -> None:
    """An address with secrets as the value of any option, from any source, is refused, or used, without a leak."""
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"ckpt_{step}.safetensors")
    text = f"KEY={address}" if one.kind == "pairs" else address
    value = json.dumps([text] if one.many else text)
    (tmp_path / "own.toml").write_text(f"{one.key} = {value}\n")
    at_once.given = ("own.toml",)
    decay = [] if one.name == "decay" else ["--decay", "0.5"]
    words = ["plan", "ckpt_1.safetensors", "ckpt_2.safetensors", *decay]
    variable = {PREFIX + one.key.upper().replace("-", "_"): text}
    at_once(*words, f"--{one.key}={text}")
    at_once(*words, f"--{one.key}", text, "--json")
    at_once(*words, **variable)
    at_once(*words, "--config", "own.toml", "--show-config")
    at_once(*words, "--config", "own.toml", "--show-config", "--json", **variable)


WRONG = [
    ["verify", "URL"],
    ["verify", "none.safetensors", "URL"],
    ["diff", "URL", "URL"],
    ["diff", "a", "b", "URL"],
    ["inspect", "URL", "--key", "URL"],
    ["help", "URL"],
    ["plan", "URL*", "--decay", "0.5"],
    ["plan", "s3x://LOGIN@host/a.pt?sig=MARK", "--decay", "0.5"],
    ["plan", "zip://a::URL", "--decay", "0.5"],
    ["plan", "https:/LOGIN@host/a.pt", "--decay", "0.5"],
    ["plan", "URL:0.5", "URL:0.25", "--method", "manual"],
    ["plan", "URL", "--method", "manual"],
    ["plan", "URL", "--manifest", "URL"],
    ["--nonsense=URL", "x"],
    ["URL", "--decay", "URL", "-o", "URL"],
    ["URL", "--decay", "0.5", "-o", "s3x://LOGIN@host/ema.safetensors", "--report", "URL.txt"],
    ["URL", "--decay", "0.5", "-o", "ema.safetensors", "--report", "URL.html"],
    ["URL", "--decay", "0.5", "-o", "ema_{what}_URL"],
    ["URL", "--decay", "0.5", "-o", "ftp://LOGIN@127.0.0.1:9/ema.safetensors"],
    ["--config", "URL", "plan", "x"],
    ["plan", "x", "--config", "URL"],
    ["batch", "URL", "--decay", "0.5", "--index", "URL"],
    ["batch", "--manifest", "URL"],
    ["batch", "URL", "URL", "--decay", "0.5", "-o", "s3x://LOGIN@host/{name}.safetensors"],
    ["TOKEN", "--decay", "0.5"],
    ["diff", "a", "b", "BLANK"],
    ["--nonsense=BLANK", "x"],
    ["plan", "BLANK", "--decay", "BLANK"],
    ["BLANK", "--decay", "0.5", "-o", "BLANK"],
    ["help", "BLANK"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_no_error_repeats_a_secret(words: list[str], at_once: Searched) -> None:
    """Whatever is wrong with a command line, the message has what to correct, and no secret."""
    filled = [word.replace("URL", URL.format(1)).replace("LOGIN", LOGIN) for word in words]
    filled = [word.replace("MARK", MARK).replace("TOKEN", TOKEN).replace("BLANK", BLANK) for word in filled]
    assert at_once(*filled, GITHUB_ACTIONS="true").returncode != 0
    assert at_once(*filled, "--json").returncode != 0


def test_a_proposed_command_has_no_secret(at_once: Searched, tmp_path: Path) -> None:
    """A command that a hint proposes stands for the one that was typed, with the secrets to be filled in."""
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        for step in (1, 2):
            save_file({"w": torch.full((2,), float(step))}, tmp_path / name / f"ckpt_{step}.safetensors")
    words = ("--decay", 0.5, "--metadata", f"from={URL}", "-o", f"s3://{LOGIN}@bucket/{{name}}/ema.safetensors")
    done = at_once("a/run", "b/run", *words)
    assert done.returncode != 0
    proposed = next(line for line in done.stderr.splitlines() if "ema-avg batch" in line)
    command = shlex.split(proposed[proposed.index("ema-avg batch") :])
    assert f"s3://{HIDDEN}@bucket/{{name}}/ema.safetensors" in command
    assert f"from=https://{HIDDEN}@127.0.0.1:9/{{}}.safetensors?{HIDDEN}" in command


# What is left behind


def test_an_interrupted_run_leaves_no_secret(server: DemandingServer, tmp_path: Path) -> None:
    """The partial output, its journal and the lock have none, nor have their names."""
    output = tmp_path / "ema.safetensors"
    options = make_options(
        addresses(server), decay=0.5, output=output, resume=True, report=tmp_path / "r.html", metadata={"a": URL}
    )

    class StoppedError(BaseException):
        """The run is interrupted."""

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise StoppedError

    with pytest.raises(StoppedError):
        run_average(options, stop, ["ema-avg", *addresses(server)])
    assert check_files(tmp_path)
    assert not output.exists()
    run_average(options, argv=["ema-avg", *addresses(server)])
    assert "ema.safetensors" in check_files(tmp_path)


def test_reports_of_older_versions(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """A report that has secrets, as version 0.6.0 wrote them, is shown and copied without them."""
    paths = addresses(server)
    words = [*paths, "--decay", 0.5, "-o", "ema.safetensors"]
    assert searched(*words).returncode == 0
    old = json.loads((tmp_path / "ema.report.json").read_text())
    old["schema_version"] = "1.1"
    del old["command"]["secrets_removed"]
    old["command"]["argv"] = ["ema-avg", *map(str, words)]
    old["command"]["options"]["paths"] = paths
    old["inputs"][0]["path"] = paths[0]
    old["inputs"][0]["notes"] = [f"dropped {paths[0]}"]
    old["warnings"] = [{"code": "one-checkpoint", "message": f"read {paths[0]}", "hint": paths[0], "allowed": False}]
    (tmp_path / "ema.report.json").write_text(json.dumps(old))
    searched.given = ("ema.report.json",)
    done = searched(*words, "--report", "new.json", "--report", "new.html", "--report", "new.md", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"]["secrets_removed"] is True
    assert json.loads((tmp_path / "new.json").read_text())["command"]["secrets_removed"] is True
    assert planted((tmp_path / "ema.report.json").read_bytes())
    for flags in ([], ["--json"], ["--output-only"]):
        searched("verify", "ema.safetensors", *flags)


@pytest.mark.parametrize("flags", [(), ("-v",), ("--json",)], ids=" ".join)
def test_outputs_of_older_versions(flags: tuple[str, ...], at_once: Searched, tmp_path: Path) -> None:
    """Metadata with secrets are shown without them, by every command that shows metadata."""
    metadata = {
        "source": URL,
        "ema_avg.version": "0.6.0",
        "ema_avg.folded": json.dumps([f"a?token={MARK}"]),
        "b": BLANK,
    }
    metadata |= {"ema_avg.method": "ema", "ema_avg.decay": "0.5", "ema_avg.one_minus_decay": "0.5"}
    metadata |= {"ema_avg.init": "first", "ema_avg.per": "checkpoint", "ema_avg.checkpoints": "1"}
    tensors = {"w": torch.arange(3.0)}
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    save_file({"w": torch.ones(3)}, tmp_path / "c.safetensors")
    at_once.given = ("old.safetensors",)
    shown = at_once("inspect", "old.safetensors", *flags).stdout
    assert flags != ("--json",) or json.loads(shown)["checkpoints"][0]["metadata"]["source"].endswith(f"?{HIDDEN}")
    at_once("plan", "c.safetensors", "--continue-from", "old.safetensors", *flags)
    if "-v" not in flags:
        at_once("verify", "old.safetensors", *flags)
    at_once("diff", "old.safetensors", "c.safetensors", *flags)
    at_once("c.safetensors", "--continue-from", "old.safetensors", "-o", "new.safetensors", *flags)


TABLES = [
    '"URL" = 1',
    'decay = ["URL"]',
    'output = ["URL", 1]',
    'metadata = {a = "URL", b = 2}',
    'metadata = ["URL", "BLANK"]',
    '["URL"]\na = 1',
    'decay = "URL',
    'steps = ["BLANK"]',
    'unknown = "URL"\nforce = "BLANK"\nlast = "URL"',
]


@pytest.mark.parametrize("table", TABLES)
def test_no_configuration_shows_a_secret(table: str, at_once: Searched, tmp_path: Path) -> None:
    """Wrong keys and wrong values of configuration files and manifests are named without secrets."""
    filled = table.replace("URL", URL).replace("BLANK", BLANK)
    (tmp_path / "own.toml").write_text(filled)
    (tmp_path / "jobs.toml").write_text(f'[[job]]\nrun = "{URL}"\n{filled}\n')
    (tmp_path / "more.toml").write_text(f'{filled}\n[[job]]\npaths = ["{BLANK}", 1]\n')
    at_once.given = ("own.toml", "jobs.toml", "more.toml")
    for flags in ([], ["--json"]):
        at_once("plan", "x", "--config", "own.toml", *flags)
        at_once("batch", "--manifest", "jobs.toml", *flags)
        at_once("batch", "--manifest", "more.toml", *flags)
    at_once("plan", "x", EMA_AVG_NONSENSE=URL, EMA_AVG_DECAY=BLANK)


def test_a_store_with_a_login(tmp_path: Path) -> None:
    """Inputs and outputs in a store are where their whole address says, and are shown without it."""
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"ckpt_{step}.safetensors")
    output = f"memory://{LOGIN}@bucket/{{decay}}/ema.safetensors"
    report = ema_cli.average(tmp_path, decay=0.5, output=output, report=output.replace(".safetensors", ".html"))
    assert report.averages[0].output.path == f"memory://{HIDDEN}@bucket/0.5/ema.safetensors"
    assert not planted(repr(report))
    written = locate(output.replace("{decay}", "0.5"))
    assert isinstance(written, Url)
    assert ema_cli.inspect(written.address).metadata["ema_avg.checkpoints"] == "2"
    assert not planted(repr(ema_cli.plan([written.address], decay=0.5).checkpoints[0].path))


# Failures of the program and of libraries


def test_a_traceback_has_no_secret(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Not even the one that a maintainer asks for."""
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    try:
        raise ValueError(f"Cannot connect to {URL.format(1)}\nAuthorization: Basic {MARK}")
    except ValueError as error:
        described = describe_bug(error)
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert "ValueError" in described.message
    assert not planted(shown + described.message)


def test_no_library_writes_a_secret_to_standard_error(tmp_path: Path) -> None:
    """Whoever writes there, the stream removes secrets; standard output is only for the program."""
    path = tmp_path / "stderr"
    with path.open("w") as file:
        guarded(file, essential=False).write(f"Unclosed connection\nurl: {URL.format(1)}\n")
    assert not planted(path.read_text())
    assert path.read_text().startswith("Unclosed connection\nurl: https://***@127.0.0.1:9/1.safetensors?***")


@pytest.mark.parametrize("kind", [EmaAvgError, InputRefused])
def test_errors_and_warnings_are_made_without_secrets(kind: type[EmaAvgError]) -> None:
    """Also for callers in Python, who never see the console."""
    error = kind(f"no {quoted(URL)}: {URL}", hint=URL)
    assert not planted(repr(error) + str(error) + error.message + error.hint)
    assert not planted(repr(RunWarning(code="no-locks", message=URL, hint=URL)))


# Addresses


def test_a_query_may_choose_the_file(server: DemandingServer, searched: Searched, tmp_path: Path) -> None:
    """Two addresses that differ in the query alone are two inputs, with numbers as their names; a signature is none."""
    server.query = ""
    chosen = [server.address("get", query=f"id=ckpt_{n}.safetensors&{SIGNATURE}") for n in (100, 200)]
    flags = ("--method", "uniform", "--steps", "100,200", "-o", "ema.safetensors", "--report", "r.html")
    done = searched(*chosen, *flags)
    assert done.returncode == 0, done.stderr
    assert f"get?{HIDDEN} (1)" in done.stderr
    assert f"get?{HIDDEN} (2)" in done.stderr
    page = (tmp_path / "r.html").read_text()
    assert f"get?{HIDDEN} (1)" in page
    assert f"get?{HIDDEN} (2)" in page
    first, second = (load_file(server.folder / f"ckpt_{n}.safetensors")["w"].double() for n in (100, 200))
    assert load_file(tmp_path / "ema.safetensors")["w"].equal(((first + second) / 2).float())
    again = [server.address("ckpt_100.safetensors", query=f"X-Amz-Signature={MARK}{n}") for n in (1, 2)]
    done = searched("plan", *again, *addresses(server, 200), "--decay", 0.5)
    assert "named twice" in done.stdout
    assert "2 checkpoints" in done.stdout


@pytest.mark.parametrize(
    "address",
    [
        "https://h/ckpt_100.pt?X-Amz-Signature=abc/def+x==",
        "https://h/a/ckpt_100.pt?a=b//c/./d/../e",
        "https://h//a//b/ckpt_100.pt?sig=a%2Fb%3D&se=2026",
        "https://me:secret@h:8080/ckpt_100.pt#a//b",
        "http://h/ckpt_100.pt",
        "s3://b/run/ckpt_100.pt",
    ],
)
def test_an_address_is_kept_as_it_is(address: str) -> None:
    """Nothing of it is collapsed; name, suffix and neighbors do not have its query."""
    url = locate(address)
    assert isinstance(url, Url)
    assert url.address == address
    assert (url.name, url.stem, url.suffix) == ("ckpt_100.pt", "ckpt_100", ".pt")
    report = url.with_name("ckpt_100.report.json")
    assert report.name == "ckpt_100.report.json"
    assert "?" not in report.address
    assert (url.parent / "ckpt_100.pt").name == url.name
    assert Url(url) == url
    assert url != Url(f"{address}?another=1")


def test_labels_are_names_without_secrets() -> None:
    """A signature is no part of a name; what may choose a file is shown as a mark, and numbered."""
    urls = [locate(f"https://u:p@h/run/{name}") for name in ("a.pt?X-Amz-Signature=1", "get?id=1", "get?id=2&sig=3")]
    assert common_folder(urls) == "https://h/run"
    assert labels(urls, common_folder(urls)) == ["a.pt", f"get?{HIDDEN} (1)", f"get?{HIDDEN} (2)"]
    assert labels([locate("a/get?x"), locate("b/get?x")], "") == ["a/get?x", "b/get?x"]


# The function itself

CHARACTERS = st.characters(codec="ascii", categories=["L", "N"], include_characters="-._~+/=!$'()*,;:%")
SECRET = st.text(CHARACTERS, min_size=8).filter(lambda secret: any(map(str.isalnum, secret)))
WORDS = st.text(st.sampled_from(" ,.\n\t\"'()[]<>"), max_size=12)
FORMS = [
    "https://me:{}@host/a.pt",
    "s3://{}:x@bucket/a.pt",
    "HTTP://{}@host",
    "simplecache::https://host/a.pt?k={}",
    "https://host/a.pt?X-Amz-Signature={}&x=1",
    "https://host/a.pt?{}",
    "https://host/a.pt?id=3#{}",
    "https://h/{{x}}?u=https://other/{}",
    "az://container/a?sv=1&sig={}",
    "gs://b/o?X-Goog-Signature={}",
    "--output=https://host/a?x={}",
    "KEY=https://host/a?x={}",
    "/a/b.pt?token={}",
    "https%3A%2F%2Fme%3A{}%40host",
]


@given(SECRET.filter(lambda s: HIDDEN not in s and s[0] not in ":/*" and "://" not in s), WORDS, WORDS)
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("form", FORMS)
def test_no_secret_stays(form: str, secret: str, before: str, after: str) -> None:
    """Whatever the secret is, and whatever is around it, it is removed, once and for all."""
    if form.startswith(("https%3A", "s3", "HTTP", "https://me", "/a", "az", "gs")) and set(secret) & set("&;/\"'<>%"):
        secret = "".join(c if c.isalnum() else "-" for c in secret)
    for text, whole in ((f"{before} {form.format(secret)} {after}", False), (form.format(secret), True)):
        shown = without_secrets(text, whole=whole)
        assert secret.rstrip("\"'`)>]}.,;:") not in shown
        assert is_redacted(shown)
        assert without_secrets(shown, whole=whole) == shown
        assert without_secrets(shown) == shown
        assert secret.rstrip("\"'`)>]}.,;:") not in safe_text(text, limit=len(text), whole=whole)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z"], exclude_characters="%"), max_size=60))
@settings(deadline=None)
def test_ordinary_names_are_left_alone(name: str) -> None:
    """Names of files stay readable, whatever their characters are."""
    for path in (name, f"/data/{name}@v2.pt", f"run?/{name}", f"hf_{name[:15]}"):
        if ":/" not in path and "=" not in path:
            assert without_secrets(path) == path


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ckpt?.pt",
            "a@b.pt",
            "what?x=1.pt",
            "file:///a?x=1@.pt",
            "hf_llama2_finetuned_7b_checkpoint_final_version.pt",
            "run/***/a.pt",
        ),
        *("user@host:/data/a.pt", "s3://bucket/ckpt_?.pt", "s3://b/a.pt?versionId=abc", "https://h:8080/a@b/c.pt"),
        *("abfss://container@account.dfs.core.windows.net/a.pt", "hf://gpt2@main/model.safetensors", "C:/a@b.pt"),
        *(
            "https://[::1]:8080/a.pt",
            "tokens=5",
            "a design=3",
            "PATH=/bin:/usr/bin@1",
            "risk-learn-model",
        ),
    ],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    """Names with marks of addresses, containers, revisions and versions are shown as they are."""
    assert without_secrets(text) == without_secrets(text, whole=True) == text
    assert not is_redacted(text)
    assert quoted(text) == f'"{text}"'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"https://h/a?x=1" cannot be read', '"https://h/a?***" cannot be read'),
        ("['https://u:p@h/a', 'https://h/b?y']", "['https://***@h/a', 'https://h/b?***']"),
        ("(https://h/a?x), b", "(https://h/a?***), b"),
        ("https://h/a?x=1: refused", "https://h/a?***: refused"),
        ("https://u:p/w?d#x@h/a.pt", "https://***@h/a.pt"),
        ("https:/u:p@h/a.pt", "https:/***@h/a.pt"),
        ("https:////u:p@h/a.pt", "https:////***@h/a.pt"),
        (r"https:\/\/u:p@h\/a.pt?x=1", r"https:\/\/***@h\/a.pt?***"),
        ("Max retries exceeded with url: /a?x=1 (Caused by", "Max retries exceeded with url: /a?*** (Caused by"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("&amp;X-Goog-Signature=abc&amp;b", "&amp;X-Goog-Signature=***&amp;b"),
        (f"see {TOKEN}.", "see hf_***."),
        ("AKIAABCDEFGHIJKLMNOP", "AKIA***"),
    ],
)
def test_the_words_around_a_secret_stay(text: str, shown: str) -> None:
    """Quotes, brackets and the end of the sentence are no part of an address."""
    assert without_secrets(text) == shown


def test_secrets_are_removed_before_a_text_is_shortened() -> None:
    """A cut never hides from the function that a text is an address."""
    address = f"https://me:{'p' * 300}@h/{'d' * 300}/a.pt?x={'s' * 300}"
    for limit in range(1, 200, 7):
        shown = safe_text(address, limit=limit)
        assert "pp" not in shown
        assert "ss" not in shown


def test_long_texts_take_linear_time() -> None:
    """A hostile name of a megabyte takes a moment."""
    for piece in ("https://", "a" * 8, "?sig", "a:/", "hf_A", "eyJ.", "%3A%2F%2F", "https://u:@", "&token=", "url: /?"):
        started = os.times().user
        without_secrets(piece * (1 << 14))
        without_secrets(piece * (1 << 14), whole=True)
        assert os.times().user - started < 2, piece
