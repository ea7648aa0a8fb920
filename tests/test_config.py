"""Options from files and from the environment: which wins, what is dropped, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ema_cli.cli.config.precedence import resolve
from ema_cli.cli.config.settings import Setting, from_environment, from_table
from ema_cli.cli.config.sources import find_file
from ema_cli.errors import UsageError
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared
from tests.helpers.program import Run

NAMES = ("decay", "half_life", "from_step", "per", "strict", "output", "steps", "metadata")
OPTIONS = [one for one in declared(Options) if one.name in NAMES]


def table(**values: object) -> dict[str, Any]:
    """Return the values of a table's settings."""
    return {name: setting.value for name, setting in from_table(values, OPTIONS, Path("c.toml")).items()}


def variables(**values: str) -> dict[str, Any]:
    """Return the values of the environment's settings."""
    return {name: setting.value for name, setting in from_environment(values, OPTIONS).items()}


def layer(**values: object) -> dict[str, Setting]:
    """Return settings of one origin."""
    return {name: Setting(value=value, origin="flag", where=f"--{name}") for name, value in values.items()}


def found_above(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings of the nearest file that is obeyed."""
    search = find_file(folder)
    assert search.ignored == ()
    return search.file.table if search.file else None


def shown(ema_avg: Run, *arguments: object, **environment: str) -> dict[str, Any]:
    """Return the options that ``--show-config --json`` shows."""
    done = ema_avg(*arguments, "--show-config", "--json", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    options: dict[str, Any] = json.loads(done.stdout)["options"]
    return options


def test_values_of_a_file_have_their_types() -> None:
    """Numbers, words, switches, lists and tables have the types that Click takes."""
    assert table(decay=0.5, half_life=[1, 2.5], strict=True) == {"decay": [0.5], "half_life": [1, 2.5], "strict": True}
    assert table(**{"half-life": 3, "from": 7}) == {"half_life": [3], "from_step": 7}
    assert table(steps=[100, 200], metadata={"a": "b"}) == {"steps": "100,200", "metadata": ["a=b"]}
    assert table(steps="1,2", metadata=["a=b"]) == {"steps": "1,2", "metadata": ["a=b"]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decay": "0.5"}, "a number, or a list"),
        ({"decay": True}, "a number"),
        ({"decay": []}, "a number"),
        ({"decay": [0.5, "x"]}, "a number"),
        ({"decay": 10**400}, "a number"),
        ({"from": 1.5}, "a whole number"),
        ({"strict": 1}, "true or false"),
        ({"strict": "true"}, "true or false"),
        ({"per": "steps"}, "one of checkpoint, step"),
        ({"output": 3}, "text in quotes"),
        ({"output": "a\0b"}, "text in quotes"),
        ({"steps": [True]}, "a list of numbers"),
        ({"metadata": {"a": 1}}, "KEY=VALUE"),
        ({"half_lief": 3}, "did you mean half-life"),
        ({"nothing-like-it": 3}, "--show-config"),
        ({"show-config": True}, "only be given on the command line"),
        ({"config": "a.toml"}, "only be given on the command line"),
        ({"half-life": 3, "half_life": 4}, "twice"),
    ],
)
def test_wrong_values_of_a_file_are_reported(values: dict[str, object], words: str) -> None:
    """An unknown key or a wrong type names the file and what would be right."""
    with pytest.raises(UsageError) as refused:
        from_table(values, OPTIONS, Path("c.toml"))
    assert words in refused.value.message + refused.value.hint
    assert "c.toml" in refused.value.message


def test_all_faults_are_reported_at_once() -> None:
    """Several wrong settings are one message, each with what would be right."""
    with pytest.raises(UsageError, match="2 settings") as refused:
        from_table({"strct": True, "per": "steps"}, OPTIONS, Path("c.toml"))
    assert "did you mean strict" in refused.value.message
    assert "one of checkpoint, step" in refused.value.message


def test_variables_are_read_by_the_type_of_their_option() -> None:
    """Lists have commas, switches words, and an empty variable sets nothing."""
    found = variables(EMA_AVG_DECAY="0.5, 0.9", EMA_AVG_STRICT="off", EMA_AVG_FROM="7", EMA_AVG_PER="", HOME="/x")
    assert found == {"decay": [0.5, 0.9], "strict": False, "from_step": 7}
    assert variables(EMA_AVG_DEBUG="1", EMA_AVG_NUMPY="1", EMA_AVG_OUTPUT="a,b.safetensors") == {
        "output": "a,b.safetensors"
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("EMA_AVG_DECAY", "much", "a number"),
        ("EMA_AVG_FROM", "9" * 5000, "a whole number"),
        ("EMA_AVG_STRICT", "perhaps", "true or false"),
        ("EMA_AVG_HALFLIFE", "3", "EMA_AVG_HALF_LIFE"),
        ("EMA_AVG_HALFLIFE", "", "EMA_AVG_HALF_LIFE"),
        ("EMA_AVG_CONFIG", "a.toml", "only be given on the command line"),
    ],
)
def test_wrong_variables_are_reported(name: str, text: str, words: str) -> None:
    """An unknown variable, or one with a meaningless value, is an error with its name."""
    with pytest.raises(UsageError) as refused:
        from_environment({name: text}, OPTIONS)
    assert words in refused.value.message + refused.value.hint
    assert name in refused.value.message or "command line" in refused.value.message


def test_the_nearest_file_wins(tmp_path: Path) -> None:
    """Files are looked for upwards; ``ema-avg.toml`` comes first, a pyproject without the table does not count."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.ema-avg]\nevery = 2\n")
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\ndependencies = ["ema-avg"]\n')
    (inner / "pyproject.toml").write_text("this is not TOML, and not about us")
    assert found_above(inner) == {"every": 2}
    (tmp_path / "ema-avg.toml").write_text("every = 3\n")
    assert found_above(inner) == {"every": 3}
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.ema-avg]\n")
    assert found_above(inner) == {}


@pytest.mark.parametrize(
    ("strong", "weak", "left"),
    [
        ({"half_life": 4}, {"decay": 0.9, "per": "step"}, {"per"}),
        ({"decay": 0.9}, {"one_minus_decay": 0.1, "init": "debias"}, {"init"}),
        ({"method": ["uniform"]}, {"decay": 0.9, "per": "step", "last": 3}, {"last"}),
        ({"method": ["ema-hold"]}, {"decay": 0.9, "per": "step"}, {"decay"}),
        ({"method": ["ema", "uniform"]}, {"decay": 0.9}, {"decay"}),
        ({"decay": 0.9}, {"method": ["uniform"], "dtype": "float32"}, {"dtype"}),
        ({"decay": 0.9}, {"method": ["ema", "uniform"]}, {"method"}),
        ({"decay": 0.9}, {"method": ["power", "ema"], "sigma_rel": 0.1}, {"method", "sigma_rel"}),
        ({"decay": 0.9}, {"sigma_rel": 0.1}, set()),
        ({"decay": 0.9}, {"method": ["power"], "sigma_rel": 0.1}, set()),
        ({"sigma_rel": 0.1}, {"method": ["ema"], "half_life": 3, "per": "step"}, set()),
        ({"per": "step"}, {"warmup": "tf", "decay": 0.9}, {"decay"}),
        ({"weights": "1,2"}, {"decay": 0.9, "no_normalize": True}, {"no_normalize"}),
        ({"warmup": "tf"}, {"inv_gamma": 2.0, "decay": 0.9}, {"decay"}),
        ({"inv_gamma": 2.0}, {"warmup": "tf", "method": ["ema-warmup"]}, {"method"}),
        ({"continue_from": "e"}, {"decay": 0.9, "method": ["ema"], "clock": "tokens"}, {"clock"}),
        ({"last": 3}, {"decay": 0.9, "half_life": 2}, {"decay", "half_life"}),
    ],
)
def test_weaker_settings_that_contradict_are_dropped(
    strong: dict[str, object], weak: dict[str, object], left: set[str]
) -> None:
    """A weight setting of a stronger layer removes the settings that contradict it, and nothing else."""
    kept, dropped = resolve([layer(**strong), layer(**weak)])
    assert set(kept) == set(strong) | left
    assert {one.parameter for one in dropped} == set(weak) - left
    assert all(one.by in strong for one in dropped)


def test_a_stronger_value_replaces_a_weaker_one() -> None:
    """Each option has the value of the strongest layer that sets it."""
    kept, dropped = resolve([layer(decay=1), layer(decay=2, every=2), layer(every=3, last=3)])
    assert {name: setting.value for name, setting in kept.items()} == {"decay": 1, "every": 2, "last": 3}
    assert dropped == []


def test_flags_before_the_environment_before_the_file_before_defaults(tmp_path: Path, ema_avg: Run) -> None:
    """``--show-config`` shows each value's origin, and needs no checkpoints."""
    (tmp_path / "pyproject.toml").write_text('[tool.ema-avg]\nevery = 2\nlast = 5\ndtype = "float64"\n')
    found = shown(ema_avg, "--dtype", "float32", EMA_AVG_LAST="3", EMA_AVG_DTYPE="float16")
    assert found["dtype"] == {"value": "float32", "origin": "flag", "where": "--dtype", "dropped": None}
    assert found["last"] == {"value": 3, "origin": "environment", "where": "EMA_AVG_LAST", "dropped": None}
    assert (found["every"]["value"], found["every"]["origin"]) == (2, "file")
    assert found["every"]["where"] == str(tmp_path / "pyproject.toml")
    assert found["order"] == {"value": "auto", "origin": "default", "where": None, "dropped": None}


@pytest.mark.parametrize("command", [[], ["average"], ["plan"]])
def test_every_averaging_command_shows_its_configuration(command: list[str], tmp_path: Path, ema_avg: Run) -> None:
    """The lines have option, value and origin; a dropped value has its reason."""
    (tmp_path / "ema-avg.toml").write_text('half-life = 4\nper = "step"\n')
    done = ema_avg(*command, "--show-config", "--decay", "0.5")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["decay"].split() == ["decay", "[0.5]", "--decay"]
    assert lines["per"].endswith("ema-avg.toml")
    assert "is dropped for --decay" in lines["half-life"]
    assert "show-config" not in lines


def test_a_configured_run_is_the_run_with_flags(run_folder: Path, ema_avg: Run) -> None:
    """The output of a run from a file has the bytes of one from flags; a flag replaces a list."""
    (run_folder.parent / "ema-avg.toml").write_text(
        'decay = [0.5, 0.9]\ndtype = "float64"\noutput = "a_{decay}.safetensors"\nmetadata = {run = "x"}\n'
    )
    assert ema_avg(run_folder).returncode == 0
    flags = ["--dtype", "float64", "--metadata", "run=x", "--decay", "0.9", "-o", "b.safetensors"]
    (run_folder.parent / "ema-avg.toml").rename(run_folder.parent / "other.toml")
    assert ema_avg(run_folder, *flags).returncode == 0
    assert (run_folder.parent / "a_0.9.safetensors").read_bytes() == (run_folder.parent / "b.safetensors").read_bytes()
    done = ema_avg(run_folder, "--config", "other.toml", "--decay", "0.7")
    assert done.returncode == 0
    assert done.stdout.startswith("wrote a_0.7.safetensors")


def test_configured_weights_give_way_to_flags(run_folder: Path, ema_avg: Run) -> None:
    """A flag that sets the same in another way is no contradiction; two ways in one file are."""
    config = run_folder.parent / "ema-avg.toml"
    config.write_text("decay = 0.9\n")
    plan = json.loads(ema_avg("plan", run_folder, "--half-life", "2", "--json").stdout)
    assert plan["averages"][0]["method"]["half_life"] == 2
    plan = json.loads(ema_avg("plan", run_folder, "--method", "uniform", "--json").stdout)
    assert plan["averages"][0]["method"]["name"] == "uniform"
    plan = json.loads(ema_avg("plan", run_folder, "--json", EMA_AVG_METHOD="uniform").stdout)
    assert plan["averages"][0]["method"]["name"] == "uniform"
    config.write_text("decay = 0.9\nhalf-life = 2\n")
    done = ema_avg("plan", run_folder)
    assert done.returncode == 2
    assert "say the same thing" in done.stderr


def test_what_the_environment_lost_to_flags_leaves_the_file(run_folder: Path, ema_avg: Run) -> None:
    """A variable that a flag overrules does not hide the file's value of the same option."""
    (run_folder.parent / "ema-avg.toml").write_text('method = ["ema-hold"]\n')
    found = shown(ema_avg, "--decay", "0.5", EMA_AVG_METHOD="uniform")
    assert found["method"]["value"] == ["ema-hold"]
    assert found["method"]["origin"] == "file"


def test_configured_json_speaks_json(tmp_path: Path, ema_avg: Run) -> None:
    """``json = true`` in a file makes the errors of the run documents, too."""
    (tmp_path / "ema-avg.toml").write_text("json = true\ndecay = 0.5\n")
    done = ema_avg("missing.pt", "-o", "ema.safetensors")
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"]["exit_code"] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half-lief = 3", 'there is no option "half-lief"'),
        ("[ema-avg]\nper = 'step'", "remove the table header [ema-avg]"),
        ("half-life = ", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("half-life = " + "9" * 5000, "is not TOML"),
        ("decay = 'x'", "a number"),
        ("[decay]\nx = 1", "a number"),
        ("\x1b[31m = 1", "is not TOML"),
        ('"\\u001b[31mx" = 1', "there is no option"),
    ],
)
def test_wrong_files_are_usage_errors(text: str, words: str, tmp_path: Path, ema_avg: Run) -> None:
    """A file that cannot be used is named with the reason, exit 2, for the main job and for the plan."""
    (tmp_path / "ema-avg.toml").write_text(text)
    for command in ([], ["plan"]):
        done = ema_avg(*command, "x.pt")
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "ema-avg.toml" in done.stderr
        assert "\x1b" not in done.stderr
        assert "Traceback" not in done.stderr


def test_files_that_cannot_be_read_are_usage_errors(tmp_path: Path, ema_avg: Run) -> None:
    """A missing file, a folder, bytes that are no text, and a pyproject without the table."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name, words in (
        ("missing.toml", "No such file"),
        (".", "directory"),
        ("bytes.toml", "UTF-8"),
        ("pyproject.toml", "[tool.ema-avg]"),
    ):
        done = ema_avg("--config", name, "--show-config")
        assert done.returncode == 2, done.stderr
        assert words in done.stderr


def test_a_link_that_leads_nowhere_is_no_configuration(tmp_path: Path, ema_avg: Run) -> None:
    """The search ignores everything that is not a file."""
    (tmp_path / "ema-avg.toml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pyproject.toml")
    assert shown(ema_avg)["decay"]["origin"] == "default"


def test_inspect_and_help_need_no_configuration(run_folder: Path, ema_avg: Run) -> None:
    """A broken file stops averages only."""
    (run_folder.parent / "ema-avg.toml").write_text("=")
    assert ema_avg("inspect", run_folder / "ckpt_100.pt").returncode == 0
    assert ema_avg("--help").returncode == 0
    assert ema_avg("average", "--help").returncode == 0
    assert ema_avg("--version").returncode == 0
