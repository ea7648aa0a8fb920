"""An option is declared once, for the command line, configuration, environment, Python and documentation."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

import ema_cli
from ema_cli import api
from ema_cli.cli.batch_options import BatchCommandLine, BatchOptions
from ema_cli.cli.config.command import ConfiguredCommand
from ema_cli.cli.options import CommandLine, Given, takes
from ema_cli.cli.topics import options_table
from ema_cli.errors import EmaAvgError, UsageError
from ema_cli.options.average import Options
from ema_cli.options.declaration import PANELS, TextForm, declared, option, read_values
from ema_cli.options.keyword_messages import in_keywords
from ema_cli.record import record
from tests.helpers.program import Run


@record
class MoreOptions(Options):
    """The options with more of every kind."""

    flavor: Literal["sweet", "sour"] = option("sweet", help="How it tastes.", panel="Run")
    dose: tuple[float, ...] = option((), help="How much of it.", metavar="D", panel="Compute")
    portions: tuple[int, ...] | None = option(
        None,
        help="Portions by hand.",
        metavar="P,P",
        form=TextForm(
            parse=lambda text: tuple(int(part) for part in text.split(",")), noun="a list of portions", example="1,2"
        ),
        panel="Inputs",
    )
    salt: bool = option(True, help="Leave the salt out.", panel="Run")


def probe(*arguments: str, **environment: str) -> tuple[MoreOptions | None, str]:
    """Run a command that has the options; return the record that it gets, and what it prints."""
    app = typer.Typer()
    seen: list[MoreOptions] = []

    @app.command("average", cls=ConfiguredCommand)
    @takes(MoreOptions)
    def _average(*, given: Given, line: CommandLine) -> None:
        assert line.json in (True, False)
        seen.append(MoreOptions(paths=("a.pt",), **read_values(MoreOptions, given)))

    settings = {"COLUMNS": "200", "NO_COLOR": "1", **environment}
    done = CliRunner().invoke(app, list(arguments), env=settings, catch_exceptions=False)
    return (seen[0] if seen else None), done.output


def test_a_new_option_is_on_the_command_line() -> None:
    """One field is enough for the help, with choices and default, and for parsing."""
    _, shown = probe("--help")
    for words in ("--flavor", "sweet | sour", "How it tastes.", "[default: sweet]", "--no-salt", "P,P"):
        assert words in shown
    made, _ = probe("--flavor", "sour", "--dose", "1", "--dose", "2.5", "--portions", "3,4", "--no-salt")
    assert made is not None
    assert (made.flavor, made.dose, made.portions, made.salt) == ("sour", (1.0, 2.5), (3, 4), False)
    made, _ = probe()
    assert made is not None
    assert (made.flavor, made.dose, made.portions, made.salt) == ("sweet", (), None, True)


def test_a_new_option_can_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a key of the file and a variable of the environment, with the checks of its kind."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "ema-avg.toml"
    config.write_text('flavor = "sour"\ndose = [1, 2]\nportions = [3, 4]\nno-salt = true\n')
    made, _ = probe(EMA_AVG_DOSE="5, 6")
    assert made is not None
    assert (made.flavor, made.dose, made.portions, made.salt) == ("sour", (5.0, 6.0), (3, 4), False)
    config.write_text('flavor = "bitter"\n')
    with pytest.raises(UsageError, match="one of sweet, sour"):
        probe()
    config.write_text("")
    with pytest.raises(UsageError, match="a number, or a list of such"):
        probe(EMA_AVG_DOSE="much")


def test_a_new_option_is_shown_with_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--show-config`` shows it."""
    monkeypatch.chdir(tmp_path)
    _, shown = probe("--show-config", "--json", "--flavor", "sour", EMA_AVG_NO_SALT="1")
    options = json.loads(shown)["options"]
    assert options["flavor"] == {"value": "sour", "origin": "flag", "where": "--flavor", "dropped": None}
    assert options["no-salt"] == {"value": True, "origin": "environment", "where": "EMA_AVG_NO_SALT", "dropped": None}
    assert options["portions"]["origin"] == "default"


def test_a_new_option_is_in_the_table_of_the_documentation() -> None:
    """The table has every option of a record in its panel, and the options of the commands on request."""
    table = options_table(MoreOptions)
    assert "| `--flavor` `sweet`, `sour` | `sweet` | How it tastes. |" in table
    assert "| `--no-salt` |  | Leave the salt out. |" in table
    everything = options_table(BatchOptions, BatchCommandLine)
    for one in (*declared(Options), *declared(BatchCommandLine)):
        assert everything.count(f"{one.flag} ") + everything.count(f"{one.flag}`") >= 1
    titles = [line.removeprefix("## ") for line in everything.splitlines() if line.startswith("## ")]
    assert titles == list(PANELS)


@pytest.mark.parametrize("function", [ema_cli.average, ema_cli.plan])
def test_the_keywords_in_python_are_the_options(function: Any) -> None:
    """Every field of the record is a typed keyword with its default, and nothing else is."""
    parameters = inspect.signature(function).parameters
    defaults = {
        one.name: None if one.default is dict or one.default_warned else one.default for one in declared(Options)
    }
    names = {"paths": inspect.Parameter.empty, "progress": False, **defaults, "run": None}
    assert {name: one.default for name, one in parameters.items()} == names
    assert all(one.annotation is not inspect.Parameter.empty for one in parameters.values())
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for name, one in parameters.items() if name != "paths")


def test_every_keyword_is_documented() -> None:
    """The docstring of ``average`` has a line for each."""
    described = inspect.getdoc(ema_cli.average) or ""
    assert [name for name in inspect.signature(ema_cli.average).parameters if f"    {name}: " not in described] == []


def test_an_unknown_keyword_is_a_type_error() -> None:
    """Python refuses an unknown keyword, as for any function."""
    with pytest.raises(TypeError, match="half_lief"):
        ema_cli.plan("run", half_lief=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="half_lief"):
        api.make_options("run", half_lief=3)


def test_text_means_the_same_everywhere() -> None:
    """Sizes, lists and pairs may be text in Python, too."""
    as_text = api.make_options("run", max_memory="64MB", steps="1,2", weights="1,3", metadata="a=b", report="r.md")
    values = {"max_memory": 64_000_000, "steps": (1, 2), "weights": (1.0, 3.0), "metadata": {"a": "b"}}
    assert as_text == api.make_options("run", **values, report=[Path("r.md")])
    for wrong, message in (
        ({"max_memory": "much"}, '--max-memory "much" is not a size'),
        ({"steps": "1,x"}, '--steps "1,x" is not a list of whole numbers'),
        ({"decay": "x"}, '--decay "x" is not a number'),
        ({"every": 1.5}, '--every "1.5" is not a whole number'),
    ):
        with pytest.raises(UsageError, match=message):
            api.make_options("run", **wrong)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"decay": 1.2}, "decay=1.2 is not in [0, 1)", "decay=0.9"),
        ({"half_life": -1}, "half_life=-1 must be positive, and at most 1e+15", ""),
        ({"decay": 0.5, "half_life": 3}, "decay and half_life say the same thing", "give one of them"),
        ({"decay": 0.5, "from_step": 2, "to_step": 1}, "from_step=2 is after to_step=1", ""),
        ({"decay": 0.5, "normalize": False}, 'method="ema" has no normalize=False', 'choose method="manual"'),
        ({"decay": 0.5, "order": "stpe"}, 'order="stpe" is none of auto, step', "did you mean step?"),
        ({"decay": 0.5, "max_memory": "much"}, 'max_memory="much" is not a size', 'max_memory="64MB"'),
    ],
)
def test_errors_from_python_name_keywords(options: dict[str, Any], message: str, hint: str) -> None:
    """Message and hint are written, and can be copied, as Python."""
    with pytest.raises(EmaAvgError) as refused:
        ema_cli.plan("missing", **options)
    assert refused.value.message.startswith(message)
    assert str(refused.value) == refused.value.message
    assert refused.value.hint.endswith(hint)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decay", "1.2"], ("--decay 1.2 is not in [0, 1)", "--decay 0.9")),
        (["--decay", "0.5", "--no-normalize"], ("--method ema has no --no-normalize", "--method manual")),
        (["--decay", "0.5", "--max-memory", "much"], ('--max-memory "much" is not a size', "--max-memory 64MB")),
    ],
)
def test_errors_from_the_command_line_name_flags(arguments: list[str], words: tuple[str, ...], ema_avg: Run) -> None:
    """The same errors in the notation of the shell."""
    done = ema_avg("plan", "missing", *arguments)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choose another name with -o, or overwrite it with --force", "with output, or overwrite it with force=True"),
        ("-o x.safetensors; or -o x/ for a folder", 'output="x.safetensors"; or output="x/" for a folder'),
        ("-o '{run}/e.safetensors'", 'output="{run}/e.safetensors"'),
        ("--order name or --order given, or --steps", 'order="name" or order="given", or steps'),
        ("--steps 100,200,...; or --per step.", 'steps="100,200,..."; or per="step".'),
        ("--metadata run=baseline", 'metadata={"run": "baseline"}'),
        ("ema-avg plan run --decay 0.9", "ema-avg plan run --decay 0.9"),
        ('the output "--decay 3" is a folder', 'the output "--decay 3" is a folder'),
        ("--safe_serialization and --no-such", "--safe_serialization and --no-such"),
    ],
)
def test_flags_become_keywords(text: str, expected: str) -> None:
    """Values are quoted as their types need it; commands, names and the flags of other programs stay."""
    assert in_keywords(text).endswith(expected)


def test_help_and_version_load_little() -> None:
    """Neither needs numpy or fsspec, and the version needs no rich."""
    for arguments, heavy in ((["--version"], ("numpy", "fsspec", "rich")), (["--help"], ("numpy", "fsspec"))):
        code = (
            "import sys\nfrom ema_cli.cli.main import run\n"
            "try:\n    run(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            f"print([name for name in {heavy!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", arguments
