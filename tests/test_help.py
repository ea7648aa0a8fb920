"""``ema-avg help``: every topic is shown and correct, and its commands run; so do those of the README."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

import ema_cli
from ema_cli.cli import topics
from ema_cli.cli.app import app
from ema_cli.cli.exit import ExitCode, exit_code
from ema_cli.errors import WARNING_CODES, UsageError
from ema_cli.weights.methods import SPECS
from tests.helpers.program import forked

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TOPICS = sorted((ROOT / "ema_cli" / "help").glob("*.md"))
PAGES = [README, *TOPICS]
LINKED = [
    *PAGES,
    *(ROOT / ".github").glob("*.md"),
    *(ROOT / "tests").rglob("README.md"),
    ROOT / "scripts" / "README.md",
]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
VARIABLES = {"RUN_DIR": "run", "h": "50"}
LAST_STEP = 1000


class Command(NamedTuple):
    """A command of ``ema-avg`` on a page."""

    page: str
    variables: dict[str, str]
    arguments: list[str]
    fails: bool
    """Whether the page shows that it ends with an error."""


def show(*arguments: str, **environment: str) -> str:
    """Return the output of a command."""
    done = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "80", **environment})
    assert done.exit_code == 0, done.exception
    return done.output


def words(text: str) -> str:
    """Return text without line breaks."""
    return " ".join(text.split())


def blocks(text: str) -> list[str]:
    """Return the contents of the blocks of code."""
    return re.findall(r"```(?:sh|console|yaml)\n(.*?)```", text, re.DOTALL)


def commands() -> Iterator[Command]:
    """Yield the commands of ``ema-avg`` in the blocks of all pages."""
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8").replace("\\\n", " ")):
            lines = [*block.splitlines(), ""]
            for line, following in pairwise(lines):
                found = re.match(r"\s*(?:\$ |- |run: |- run: )?((?:[A-Z_]+=\S+ )*)ema-avg (.*)", line)
                if found:
                    given = dict(one.split("=", 1) for one in found[1].split())
                    yield Command(page.name, given, arguments_of(found[2]), following.startswith("error:"))


def arguments_of(line: str) -> list[str]:
    """Return the arguments of a command line up to a comment, a redirection or another command."""
    known = re.sub(r"\$\{?(\w+)(?::[?-]([^}]*))?\}?", lambda found: VARIABLES.get(found[1], found[2] or "1"), line)
    words = shlex.shlex(known, posix=True, punctuation_chars="|>;&")
    words.whitespace_split = True
    ends = iter(lambda: words.get_token() or "", "")
    arguments = []
    for word in ends:
        if set(word) <= set("|>;&"):
            break
        arguments.append(word)
    return arguments


def with_command(arguments: list[str]) -> list[str]:
    """Return the arguments with the word for the main job, which may be missing."""
    return arguments if arguments[0] in COMMANDS else ["average", *arguments]


@pytest.fixture(autouse=True)
def _in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is no terminal, wherever the tests run."""
    monkeypatch.setattr(os, "isatty", lambda _: False)


def _net() -> torch.nn.Module:
    """Return the network of the runs; ``train.py`` in the workplace builds the same."""
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands of the pages name: a run, several runs, a manifest, outputs."""
    folder = tmp_path_factory.mktemp("pages")
    runs = ("run", "runs/r0", "runs/r1", "runs/baseline", "runs/long")
    for name in runs:
        (folder / name).mkdir(parents=True)
        for step in range(40, LAST_STEP + 1, 80):  # as in scripts/demo
            torch.save({"model": _net().state_dict(), "step": step}, folder / name / f"ckpt_{step}.pt")
    ema_cli.average(folder / "run", decay=0.8, output=folder / "ema.safetensors")
    earlier = {"per": "step", "half_life": 100, "to_step": 800, "dtype": "float32"}
    ema_cli.average(folder / "run", output=folder / "running.safetensors", **earlier)  # type: ignore[arg-type]
    live = ema_cli.EMA(_net(), 0.999)
    live.register(step=800)
    live.save(folder / "ema_step800.safetensors")
    manifest = re.search(r"```toml\n(.*?)```", topics.topic_text("many-runs"), re.DOTALL)
    assert manifest is not None
    (folder / "averages").mkdir()
    (folder / "jobs.toml").write_text(manifest[1])
    (folder / "ema-avg.toml").write_text("threads = 1\n")
    (folder / "train.py").write_text(
        "import torch\n"
        "def build():\n    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))\n"
        "loader = [torch.ones(4, 3)]\n"
    )
    return folder


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.stem)
def test_a_topic_has_the_form_of_one(path: Path) -> None:
    """Its name, one sentence about its purpose, then at most 120 lines of at most 120 characters, in UTF-8."""
    title, blank, purpose, other, *rest = path.read_text(encoding="utf-8").splitlines()
    assert (title, blank, other) == (f"# {path.stem}", "", "")
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*[.?]", purpose)
    assert len(rest) <= 116
    assert max(map(len, rest)) <= 120


@pytest.mark.parametrize("name", topics.topic_names())
def test_a_topic_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe as Markdown; on a terminal rendered, within its width unless a line of code is longer."""
    text = topics.topic_text(name)
    assert show("help", name) == text.rstrip("\n") + "\n"
    monkeypatch.setattr(os, "isatty", lambda _: True)
    rendered = show("help", name)
    assert "```" not in rendered
    assert "**" not in rendered
    assert max(map(cell_len, rendered.splitlines())) <= 80
    assert len(words(rendered)) > 0.5 * len(words(text))


def test_the_list_of_topics_names_each_with_its_purpose() -> None:
    """Without a name, the topics are listed with their first sentences."""
    shown = words(show("help"))
    for path in TOPICS:
        assert f"`{path.stem}`: {path.read_text(encoding='utf-8').splitlines()[2]}" in shown
    assert "`options`: " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_name_of_a_command_shows_its_options(name: str) -> None:
    """``ema-avg help plan`` is ``ema-avg plan --help``; no topic has the name of a command."""
    assert show("help", name) == show(name, "--help")
    assert name not in topics.topic_names()


@pytest.mark.parametrize(
    ("name", "hint"), [("metods", "did you mean ema-avg help methods?"), ("../README", "ema-avg help")]
)
def test_an_unknown_topic_is_refused_with_the_nearest(name: str, hint: str) -> None:
    """A wrong name is a usage error with the command that was probably meant; a path is no topic."""
    error = CliRunner().invoke(app, ["help", name]).exception
    assert isinstance(error, UsageError)
    assert exit_code(error) is ExitCode.USAGE
    assert error.message == f'there is no help topic "{name}"'
    assert error.hint == hint


def test_the_help_ends_with_the_way_to_the_topics() -> None:
    """The last line of ``--help`` names ``ema-avg help``."""
    assert "ema-avg help" in show("--help").strip().splitlines()[-1]


def test_the_options_are_all_in_their_topic() -> None:
    """``ema-avg help options`` names every option of the main job."""
    flags = set(re.findall(r"--[a-z][a-z0-9-]+", show("average", "--help", COLUMNS="200")))
    assert flags - {"--help"} <= set(re.findall(r"--[a-z][a-z0-9-]+", topics.topic_text("options")))


def test_the_methods_are_those_of_the_program() -> None:
    """The list of the topic is that of ``SPECS``, in its order."""
    text = words(topics.topic_text("methods"))
    lines = [
        f"* `{name}`: {spec.definition} (uses steps: {spec.steps}; known as: {spec.literature})"
        for name, spec in SPECS.items()
    ]
    assert " ".join(lines) in text


def test_the_exit_codes_are_those_of_the_program() -> None:
    """The topic and the README list every member of ``ExitCode``, and no other."""
    topic = re.findall(r"^\* `(\d+)`", topics.topic_text("exit-codes"), re.MULTILINE)
    table = re.findall(r"^\| (\d+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in topic] == [int(code) for code in table] == sorted(int(code) for code in ExitCode)


def test_the_warnings_are_those_of_the_program() -> None:
    """The topic explains every code of a warning, once, and no other; the registry has the same codes."""
    explained = re.findall(r"^\* `([a-z0-9-]+)`:", topics.topic_text("warnings"), re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "ema_cli").rglob("*.py")]
    written = {code for source in sources for code in re.findall(r'code="([a-z0-9-]+)"', source)}
    assert written <= set(explained) == set(WARNING_CODES)
    assert len(set(explained)) == len(explained)
    for code in explained:
        assert any(f'"{code}"' in source for source in sources), code


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    """At most 16,000 bytes; the first block of code has the two commands."""
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 16_000
    assert re.findall(r"^scripts/\w+", blocks(text)[0], re.MULTILINE) == ["scripts/demo", "scripts/test"]


def test_the_readme_shows_what_the_program_prints(workplace: Path) -> None:
    """Its table of decays, and the shares and the method of its first average."""
    shown = [block for block in blocks(README.read_text(encoding="utf-8")) if block.startswith("$ ema-avg run/")]
    assert len(shown) == 2
    for block in shown:
        arguments = arguments_of(block.splitlines()[0].removeprefix("$ ema-avg "))
        done = forked(workplace)(*arguments, "--force", COLUMNS="80")
        lines = {line.rstrip() for line in (done.stdout + done.stderr).splitlines()}
        stated = [line for line in block.splitlines() if re.match(r"  --|error:| +\d+  ckpt_|EMA, |effective ", line)]
        assert len(stated) >= 6
        assert [line for line in stated if line not in lines] == []


def test_the_readme_links_to_every_topic() -> None:
    """The README links to the file of every topic."""
    linked = re.findall(r"\(ema_cli/help/([\w-]+)\.md\)", README.read_text(encoding="utf-8"))
    assert set(linked) == {path.stem for path in TOPICS}


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """The target file of a link exists, and has the heading behind the ``#``."""
    for target, heading in re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_in_the_text_exist(page: Path) -> None:
    """A path in code is that of a file or folder; NAME stands for any."""
    for path in re.findall(r"`((?:ema_cli|tests|scripts)/[\w./*-]+)`", page.read_text(encoding="utf-8")):
        assert "NAME" in path or any(ROOT.glob(path.rstrip("/"))), path


def test_commands_in_the_text_exist() -> None:
    """Commands in the sentences of the pages have options that exist; ``ema-avg help X`` names a topic or a command."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in re.findall(r"`ema-avg ([^`]+)`", words(text)):
            name, *rest = with_command(arguments_of(line))
            if name == "help" and rest and rest[0].islower():
                assert rest[0] in (*topics.topic_names(), *COMMANDS), f"{page.name}: {line}"
            if rest and rest[0] not in ("--install-completion", "--version"):
                COMMANDS[name].make_context(name, rest)


@pytest.mark.parametrize("command", list(commands()), ids=lambda one: f"{one.page}: {' '.join(one.arguments)[:60]}")
def test_commands_of_the_pages_run(command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parses; averages and batches are planned, the others are run, and end as the page shows."""
    monkeypatch.chdir(workplace)
    for variable, value in command.variables.items():
        monkeypatch.setenv(variable, value)
    name, *rest = with_command(command.arguments)
    if any("://" in argument for argument in rest):  # there is no such store
        COMMANDS[name].make_context(name, rest)
        return
    dry = ["--dry-run"] if name in ("average", "batch") else []
    (workplace / "ema-bn.safetensors").unlink(missing_ok=True)  # several pages make it
    done = CliRunner().invoke(app, [name, *rest, *dry])
    if command.fails:
        assert isinstance(done.exception, ema_cli.EmaAvgError)
    else:
        assert done.exit_code == (ExitCode.DIFFERENT if name == "diff" else ExitCode.OK), done.exception


def test_the_python_of_its_topic_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks run as written, one after the other; of the names, the model alone is left to the reader."""
    monkeypatch.chdir(workplace)
    for name in ("ema.safetensors", "ema.html", "late.safetensors", "mean.safetensors"):
        (workplace / name).unlink(missing_ok=True)
    names: dict[str, Any] = {"model": _net()}
    with warnings.catch_warnings(record=True):
        for block in re.findall(r"```python\n(.*?)```", topics.topic_text("python"), re.DOTALL):
            exec(compile(block, "python.md", "exec"), names)
    shown = capsys.readouterr().out
    for part in ("<Report: EMA, decay 0.8", "torch zip model", "folding 100%", 'there is no "rum"'):
        assert part in shown


def test_the_pages_have_commands() -> None:
    """The search for commands finds them."""
    found = list(commands())
    assert len(found) > 20
    assert {one.page for one in found} > {"README.md", "ci.md", "many-runs.md", "comparing.md"}
