"""``~`` in every path that the program takes: a home folder, unless something here is called so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ema_cli
from ema_cli.discovery.patterns import matches
from ema_cli.errors import UsageError
from ema_cli.storage.locations import full_name, literal, locate, locate_listed
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home folder whose name is a pattern, with a run in it; work beside it."""
    folder = tmp_path / "home [me]"
    write_series(folder / "run", random_states(3))
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def program(ema_avg: Run, home: Path) -> Run:
    """Return the program, run beside the home folder."""
    return lambda *arguments, **environment: ema_avg(*arguments, HOME=str(home), **environment)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["~/run", "--output=~/x.safetensors"], "x.safetensors"),
        (["~/run/ckpt_*.pt", "-o", "~/new/x/"], "new/x"),
        (["~/run/ckpt_100.pt:1", "~/run/ckpt_200.pt:2", "--method", "manual", "-o", "~/m/"], "m"),
        (["~/run", "-o", "x.safetensors", "--report", "~/r.md"], "r.md"),
        (["~/run", "--config", "~/c.toml"], "configured.safetensors"),
    ],
)
def test_on_the_command_line(arguments: list[str], written: str, program: Run, home: Path) -> None:
    """In arguments, options, patterns, weighted paths and configuration files; the report has the whole path."""
    (home / "c.toml").write_text('output = "~/configured.safetensors"\n')
    decay = [] if "manual" in arguments else ["--decay", "0.5"]
    done = program(*arguments, *decay)
    assert done.returncode == 0, done.stderr
    assert (home / written).exists()
    assert not Path("~").exists()


def test_in_a_variable_a_manifest_and_an_index(program: Run, home: Path) -> None:
    """Values of the environment, and of the jobs of a batch; ``{name}`` is the name of the folder."""
    assert program("~/run", "--decay", "0.5", EMA_AVG_OUTPUT="~/v.safetensors").returncode == 0
    assert (home / "v.safetensors").exists()
    (home / "jobs.toml").write_text(
        '[[job]]\nrun = "~/run"\noutput = "~/{name}_a.safetensors"\n'
        '[[job]]\npaths = ["~/run/ckpt_*.pt"]\noutput = "{run}/b.safetensors"\n'
    )
    done = program("batch", "--manifest", "~/jobs.toml", "--decay", "0.5", "--index", "~/i/index.json")
    assert done.returncode == 0, done.stderr
    assert all((home / name).exists() for name in ("run_a.safetensors", "run/b.safetensors", "i/index.json"))
    assert program("batch", "~/run", "--decay", "0.5", "-o", "{run}/c.safetensors").returncode == 0
    assert (home / "run/c.safetensors").exists()


def test_in_the_commands_that_check(program: Run, home: Path) -> None:
    """inspect, diff, verify with inputs, and a previous average."""
    assert program("~/run/ckpt_100.pt", "~/run/ckpt_200.pt", "--decay", "0.5", "-o", "~/x.safetensors").returncode == 0
    assert program("inspect", "~/x.safetensors").returncode == 0
    assert program("diff", "~/x.safetensors", "~/x.safetensors").returncode == 0
    assert program("verify", "~/x.safetensors", "--input", "~/run/ckpt_*00.pt").returncode in (0, 10)
    assert program("verify", "~/x.safetensors").returncode == 0
    done = program("~/run", "--continue-from", "~/x.safetensors", "-o", "~/y.safetensors")
    assert done.returncode == 0, done.stderr
    assert (home / "y.safetensors").exists()


def test_in_python(home: Path) -> None:
    """Text and path objects."""
    report = ema_cli.average(Path("~/run"), decay=0.5, output="~/p.safetensors", report=[Path("~/r.md")])
    assert report.averages[0].output.path == str(home / "p.safetensors")
    assert ema_cli.inspect("~/p.safetensors").path == home / "p.safetensors"
    assert (home / "r.md").exists()


def test_what_is_called_so_here(home: Path) -> None:
    """``~`` and ``~/`` are always the home folder; ``./~`` never is; ``~root`` is what has that name here, if any."""
    here = Path.cwd()
    for name in ("~", "~root"):
        (here / name).mkdir()
    (here / "~x.pt").touch()
    assert locate("~") == home
    assert locate("~/a") == home / "a"
    assert locate("./~/a") == here / "~" / "a"
    assert locate("././~") == here / "~"
    assert locate("~root/a") == Path("~root/a")
    assert matches("~x.pt") == matches("~*.pt") == [Path("~x.pt")]
    assert matches("./~/../~x*") == [here / "~" / ".." / "~x.pt"]
    (here / "~root").rmdir()
    assert locate("~root/a") == Path(os.path.expanduser("~root")) / "a"  # noqa: PTH111


def test_a_home_folder_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder called ``~jane`` is made by accident; a file name that begins with ``~`` is none."""
    with pytest.raises(UsageError, match='there is no user "nobody-here"') as refused:
        locate("~nobody-here/x.safetensors")
    assert "./~NAME" in refused.value.hint
    assert locate("~nobody-here.pt") == Path("~nobody-here.pt")
    monkeypatch.setattr(os.path, "expanduser", lambda name: name)  # HOME is not set, and the user is not known
    with pytest.raises(UsageError, match="HOME is not set"):
        locate("~/x")


def test_a_name_in_a_report_is_taken_literally(home: Path) -> None:
    """Whoever wrote the report chose it, and reports have whole paths."""
    (home / "x.pt").touch()
    assert locate_listed("~/x.pt", allow_remote=False) == Path("~/x.pt")


@given(st.text(st.sampled_from("~./ab*"), min_size=1, max_size=8))
def test_the_name_of_a_location_leads_back_to_it(name: str) -> None:
    """Messages, jobs and proposals pass locations on as text: it never means another place."""
    try:
        location = locate(name)
    except UsageError:
        return
    assert os.path.abspath(locate(full_name(location))) == os.path.abspath(location)  # noqa: PTH100
    assert not literal(location).startswith("~")
