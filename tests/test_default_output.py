"""The output that no one named: its name, and the rules that hold for it as for any other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import UsageError
from ema_cli.options.average import make_options
from ema_cli.planning.outputs import output_path
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series

WRITTEN = {"ema.safetensors", "ema.report.json"}


def test_it_is_written_into_the_working_directory(tmp_path: Path, ema_avg: Run) -> None:
    """The plan names it and writes nothing; the run writes it, and the same command finds it up to date."""
    write_series(tmp_path / "run", random_states(3))
    for command in (["plan", "run"], ["run", "--dry-run"]):
        assert "writes ema.safetensors (" in ema_avg(*command, "--decay", "0.5").stdout
    assert listing(tmp_path) == {"run"}
    assert ema_avg("run", "--decay", "0.5").stdout.startswith("wrote ema.safetensors ")
    assert listing(tmp_path) == {"run", *WRITTEN}
    assert ema_avg("average", "run", "--decay", "0.5").stdout.startswith("up to date ema.safetensors ")


@pytest.mark.parametrize("names", [(".",), ("ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt", "ema.safetensors")])
def test_it_is_no_checkpoint_of_the_run_that_it_is_in(tmp_path: Path, ema_avg: Run, names: tuple[str, ...]) -> None:
    """In the folder of the run, the next run skips it, also if the shell names it with the others."""
    write_series(tmp_path, random_states(3))
    assert ema_avg(".", "--decay", "0.5").returncode == 0
    again = ema_avg(*names, "--decay", "0.5")
    assert again.stdout.startswith("up to date ema.safetensors "), again.stderr


def test_several_averages_have_their_labels_in_their_names(tmp_path: Path, ema_avg: Run) -> None:
    """The names differ, and so do those of the reports."""
    write_series(tmp_path / "run", random_states(3))
    done = ema_avg("run", "--decay", "0.5", "--half-life", "2", "--method", "ema", "--method", "swa")
    assert done.returncode == 2  # the decay is given twice
    assert ema_avg("run", "--decay", "0.5", "--method", "ema", "--method", "swa").returncode == 0
    stems = ("ema_ema_0.5", "ema_uniform")
    assert listing(tmp_path) == {"run", *(f"{s}{end}" for s in stems for end in (".safetensors", ".report.json"))}
    assert ema_avg("run", "--decay", "0.5", "--decay", "0.9").returncode == 0
    assert {"ema_0.5.safetensors", "ema_0.9.safetensors"} <= listing(tmp_path)


def test_a_foreign_file_of_that_name_stays(tmp_path: Path, ema_avg: Run) -> None:
    """As with any output: an error, and a warning in a plan."""
    write_series(tmp_path / "run", random_states(2))
    (tmp_path / "ema.safetensors").write_bytes(b"mine")
    done = ema_avg("run", "--decay", "0.5")
    assert (done.returncode, (tmp_path / "ema.safetensors").read_bytes()) == (5, b"mine")
    assert "choose another name with -o" in done.stderr
    assert "output-in-the-way" in ema_avg("plan", "run", "--decay", "0.5").stderr


def test_an_average_of_another_run_is_not_replaced(tmp_path: Path, ema_avg: Run) -> None:
    """Two runs averaged from one folder: the second needs a name, or --force."""
    for seed, run in enumerate(("a", "b")):
        write_series(tmp_path / run, random_states(2, seed=seed))
    assert ema_avg("a", "--decay", "0.5").returncode == 0
    refused = ema_avg("b", "--decay", "0.5")
    assert refused.returncode == 5
    assert "already exists, made with other inputs or settings" in refused.stderr
    assert ema_avg("b", "--decay", "0.5", "--force").returncode == 0


def test_python_has_the_same_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``average`` and ``plan`` without ``output``."""
    paths = write_series(tmp_path / "run", random_states(2))
    monkeypatch.chdir(tmp_path)
    assert ema_cli.plan(paths, decay=0.5).outputs[0].path == Path("ema.safetensors")
    assert ema_cli.average(paths, decay=0.5).averages[0].output.path == "ema.safetensors"
    assert listing(tmp_path) == {"run", *WRITTEN}


def test_other_options_of_the_output_go_with_it(tmp_path: Path, ema_avg: Run) -> None:
    """A limit of the shards makes a folder; a partial file can be resumed; a file or a variable can name another."""
    write_series(tmp_path / "run", random_states(2))
    assert ema_avg("run", "--decay", "0.5", "--max-shard-size", "1GB").returncode == 0
    assert (tmp_path / "ema" / "model.safetensors").exists()
    assert ema_avg("run", "--decay", "0.5", "--max-shard-size", "1GB", "--resume").returncode == 2
    (tmp_path / "ema-avg.toml").write_text('output = "configured.safetensors"\n')
    assert ema_avg("run", "--decay", "0.5", "--resume").stdout.startswith("wrote configured.safetensors ")
    assert ema_avg("run", "--decay", "0.5", EMA_AVG_OUTPUT="v.safetensors").stdout.startswith("wrote v.safetensors ")


def test_a_continued_average_has_it_too(tmp_path: Path, ema_avg: Run) -> None:
    """It is one average, whatever its method; an average is continued in place only with --force."""
    paths = write_series(tmp_path / "run", random_states(4))
    first = [str(path) for path in paths[:3]]
    assert ema_avg(*first, "--decay", "0.5", "-o", "old.safetensors").returncode == 0
    assert ema_avg("run", "--continue-from", "old.safetensors").stdout.startswith("wrote ema.safetensors ")
    assert ema_avg(*first, "--decay", "0.5", "--force").returncode == 0
    assert ema_avg("run", "--continue-from", "ema.safetensors").returncode == 5


@pytest.mark.parametrize(
    ("command", "proposed"),
    [("average", "ema-avg run --method uniform"), ("plan", "ema-avg plan run --method uniform")],
)
def test_what_does_not_work_proposes_the_same_command(
    tmp_path: Path, ema_avg: Run, command: str, proposed: str
) -> None:
    """The command that is proposed names no output either: a plan proposes a plan, a run a run."""
    write_series(tmp_path / "run", random_states(2), form="safetensors")
    done = ema_avg(command, "run", "--key", "model", "--method", "uniform", "--json")
    assert json.loads(done.stdout)["error"]["hint"].endswith(proposed)


WORDS = st.sampled_from(["ema", "ema-hold", "ema-warmup", "uniform", "uniform-time", "ramp", "lr-decay", "power"])


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3, unique=True),
    st.lists(WORDS, min_size=1, max_size=3, unique=True),
)
def test_labels_are_safe_and_different_names(decays: list[float], methods: list[str]) -> None:
    """Whatever the averages: names of letters, digits and ``._=+-``, each another."""
    try:
        options = make_options("run", method=methods, decay=decays, sigma_rel=0.1 if "power" in methods else ())
        options.check_distinct_outputs()
    except UsageError:
        return
    names = [str(output_path(method, options)) for method in options.expand()]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"ema[_\w.=+-]*\.safetensors", name) for name in names), names
