"""Misspelt names: the nearest of those that there are, found within a bounded time."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ema_cli
from ema_cli import naming
from ema_cli.errors import NothingMatched, UsageError
from ema_cli.formats.file_names import NAME_A_CHECKPOINT, SUFFIXES
from ema_cli.naming import did_you_mean, nearest
from ema_cli.options.average import make_options
from ema_cli.planning import unused_patterns
from ema_cli.planning.unused_patterns import nearest_tensors
from ema_cli.storage.nearest_path import nearest_paths
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_one, write_series

WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=5, max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=30, unique_by=str.lower), st.data())
def test_a_name_with_two_letters_swapped_is_found(names: list[str], data: st.DataObject) -> None:
    """Also in other capitals; what is returned is one of the names, as they are written."""
    meant = data.draw(st.sampled_from(names))
    place = data.draw(st.integers(0, len(meant) - 2))
    wrong = meant[:place] + meant[place + 1] + meant[place] + meant[place + 2 :]
    assert meant in nearest(wrong.swapcase(), names, most=len(names)) or len(names) > 1
    assert nearest(meant, names)[0] == meant
    assert set(nearest(wrong, names)) <= set(names)


def test_what_is_not_near_is_not_named() -> None:
    """Nothing similar, or much less similar than the nearest; equal ones in natural order."""
    assert nearest("zzz", ["uniform", "ema"]) == []
    assert nearest("x", []) == []
    assert nearest("unifrom", ["uniform", "uniform-time", "ema"]) == ["uniform"]
    numbered = [f"ckpt_{100 * number}.pt" for number in range(1, 12)]
    assert nearest("ckpt_10.pt", numbered) == ["ckpt_100.pt", "ckpt_1000.pt", "ckpt_1100.pt"]
    assert nearest("ckpt_50.pt", numbered, most=1) == ["ckpt_500.pt"]
    assert did_you_mean("a1", ["a2", "a3", "a4", "a5"], shown=lambda one: f"<{one}>") == ""
    assert did_you_mean("aab1", ["aab2", "aab3", "aab4", "b"]) == "did you mean aab2, aab3 or aab4?"


def test_of_very_many_names_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The near one is found among 100,000; letter by letter only some are compared."""
    names = [f"model.layers.{number}.self_attn.{part}_proj.weight" for number in range(25_000) for part in "qkvo"]
    compared = Mock(wraps=naming._similarity)
    monkeypatch.setattr(naming, "_similarity", compared)
    assert nearest("model.layers.17.self_atn.q_proj.weight", names)[0] == "model.layers.17.self_attn.q_proj.weight"
    assert compared.call_count <= 200


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("run/ckpt_10.pt", 'did you mean "run/ckpt_100.pt", "run/ckpt_200.pt" or "run/ckpt_300.pt"?'),
        ("run/ckpt-200.pt", 'did you mean "run/ckpt_200.pt"'),
        ("rnu", 'did you mean "run"?'),
        ("rnu/", 'did you mean "run"?'),
        ("rnu/ckpt_100.pt", 'did you mean "run/ckpt_100.pt"?'),
        ("rnu/*.pt", 'did you mean "run/*.pt"?'),
        ("run/*.safetensors", '"run" contains "ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"'),
        ("Run/CKPT_100.pt", 'did you mean "run"?'),
        ("nothing/like/it", ""),
    ],
)
def test_a_misspelt_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    """A file, a folder or a pattern: the nearest that exists, in the folder where the name goes wrong."""
    write_series(tmp_path / "run", random_states(3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NothingMatched) as refused:
        ema_cli.plan(name, decay=0.5)
    assert refused.value.hint.startswith(hint)
    assert bool(refused.value.hint) == bool(hint)


def test_every_command_names_the_nearest_path(tmp_path: Path, ema_avg: Run) -> None:
    """Whatever the file is for."""
    (tmp_path / "run").mkdir()
    write_series(tmp_path / "run", random_states(2))
    assert ema_avg("run", "--decay", "0.5").returncode == 0
    (tmp_path / "config.toml").write_text("")
    for command in (
        ["inspect", "eam.safetensors"],
        ["verify", "eam.safetensors"],
        ["diff", "ema.safetensors", "eam.safetensors"],
        ["run", "--continue-from", "eam.safetensors"],
    ):
        assert 'did you mean "ema.safetensors"?' in ema_avg(*command).stderr
    assert 'did you mean "run"?' in ema_avg("batch", "rnu", "--decay", "0.5").stderr
    assert 'did you mean "config.toml"?' in ema_avg("run", "--config", "conf.toml").stderr


def test_unsafe_names_are_shown_safely(tmp_path: Path) -> None:
    """The names are those of somebody's files."""
    (tmp_path / "ckpt\x1b[31m_1.pt").touch()
    hint = nearest_paths(tmp_path / "ckpt_1.pt")
    assert "ckpt\\x1b[31m_1.pt" in hint
    assert "\x1b" not in hint


def test_a_hint_is_found_only_where_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are also asked for to see whether they exist: no folder is searched then."""
    searched = Mock(return_value="hint")
    monkeypatch.setattr("ema_cli.storage.source.nearest_paths", searched)
    ema_cli.average(write_series(tmp_path / "run", random_states(2)), decay=0.5, output=tmp_path / "ema.safetensors")
    searched.assert_not_called()
    with pytest.raises(NothingMatched) as refused:
        ema_cli.inspect(tmp_path / "gone.pt")
    searched.assert_called_once_with(tmp_path / "gone.pt")
    assert refused.value.hint == "hint"


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (r"encodr\..*", 'did you mean "encoder"?'),
        (r"^encoder\.layr\.0\b", 'did you mean "encoder.layer.0"'),
        (r"layer\.[0-9]+\.(weigth|bias)$", 'did you mean "weight"?'),
        ("head.weihgt", 'did you mean "head.weight"?'),
        ("zzzz", "the names are listed by: ema-avg inspect CKPT"),
    ],
)
def test_a_misspelt_tensor_pattern(tmp_path: Path, pattern: str, hint: str) -> None:
    """The parts of the names that are spelled like its words, as an error and as a warning."""
    names = ["encoder.layer.0.weight", "encoder.layer.1.weight", "decoder.head.weight", "decoder.head.bias"]
    paths = write_series(tmp_path / "run", [{name: torch.ones(1) for name in names}] * 2)
    with pytest.raises(UsageError) as refused:
        ema_cli.plan(paths, decay=0.5, include=pattern)
    assert refused.value.hint.startswith(hint)
    made = ema_cli.plan(paths, decay=0.5, exclude=pattern)
    (warning,) = (one for one in made.warnings if one.code == "pattern-unused")
    assert warning.hint.startswith(hint)


def test_a_long_pattern_is_not_searched_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern may have any number of words."""
    asked = Mock(return_value="")
    monkeypatch.setattr(unused_patterns, "did_you_mean", asked)
    nearest_tensors(["|".join(f"x{number}" for number in range(1000))], {"a.weight"})
    assert asked.call_count <= 10


@pytest.mark.parametrize(
    ("key", "hint"),
    [("modle", 'did you mean key="model'), ("modle.w", 'did you mean key="model.w'), ("zzz", "the top level has ")],
)
def test_a_misspelt_key(tmp_path: Path, key: str, hint: str) -> None:
    """The key whose first wrong part is spelled otherwise, with what is below it if it is there."""
    write_one(tmp_path / "a.pt", step=1)
    with pytest.raises(UsageError) as refused:
        ema_cli.inspect(tmp_path / "a.pt", key=key)
    assert refused.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--method", "unifrom"], "did you mean uniform?"),
        (["--method", "maen"], "did you mean mean"),
        (["--dtype", "bf61"], "did you mean bf16?"),
        (["--dtype", "flaot32"], "did you mean float32?"),
        (["--per", "stepp"], "did you mean step?"),
        (["--order", "naem"], "did you mean name?"),
        (["--buffers", "lsat"], "did you mean last?"),
        (["--ci", "githb"], "did you mean github?"),
        (["--allow", "first-dominate"], "did you mean --allow first-dominates?"),
        (["-o", "x_{decy}.safetensors"], "did you mean {decay}?"),
    ],
)
def test_a_misspelt_word(arguments: list[str], hint: str, ema_avg: Run) -> None:
    """Every choice, on the command line, in a file and in a variable."""
    done = ema_avg("plan", "run", *arguments)
    assert (done.returncode, hint in done.stderr) == (2, True), done.stderr
    if arguments[0] in ("--method", "--dtype", "--per"):
        variable = {f"EMA_AVG_{arguments[0][2:].upper()}": arguments[1]}
        done = ema_avg("plan", "run", **variable)
        assert (done.returncode, hint in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        *(("dtype", *pair) for pair in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"))),
        ("dtype", "fp64", "float64"),
        *(("method", other, ("uniform",)) for other in ("swa", "mean")),
    ],
)
def test_other_words_for_a_choice(name: str, value: str, meant: object, tmp_path: Path, ema_avg: Run) -> None:
    """Everywhere; only the choice itself is stored, so both words mean the same output."""
    assert getattr(make_options("run", **{"method": "uniform", name: value}), name) == meant
    write_series(tmp_path / "run", random_states(2))
    word = meant[0] if isinstance(meant, tuple) else str(meant)
    other = ["--method", "uniform"] if name == "dtype" else []
    assert ema_avg("run", *other, f"--{name}", word).returncode == 0
    assert "up to date" in ema_avg("run", *other, f"--{name}", value).stdout
    assert "up to date" in ema_avg("run", *other, **{f"EMA_AVG_{name.upper()}": value}).stdout
    (tmp_path / "ema-avg.toml").write_text(f'{name} = "{value}"\n')
    assert "up to date" in ema_avg("run", *other).stdout
    assert f'"{word}"' in ema_avg("run", "--show-config").stdout
    assert value not in (tmp_path / "ema.report.json").read_text().partition('"argv"')[0]


def test_a_flag_over_a_configured_method_knows_both_words(tmp_path: Path, ema_avg: Run) -> None:
    """``--decay`` drops a configured ``method = "swa"``, as it drops ``uniform``."""
    write_series(tmp_path / "run", random_states(2))
    (tmp_path / "ema-avg.toml").write_text('method = "swa"\n')
    assert "decay 0.5" in ema_avg("plan", "run", "--decay", "0.5").stdout


def test_errors_of_a_format_end_with_what_can_be_read(tmp_path: Path, ema_avg: Run) -> None:
    """A text, a file of another program, a folder without checkpoints, and a wrong suffix of the output."""
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "junk").write_bytes(b"\x01\x02\xff\xfe\x00")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "x.csv").write_text("a,b")
    for name in ("notes.txt", "model.gguf", "junk", "tables"):
        assert ema_avg(name, "--decay", "0.5").stderr.strip().endswith(NAME_A_CHECKPOINT)
    assert ema_avg("batch", "tables", "--decay", "0.5").stderr.strip().endswith(NAME_A_CHECKPOINT)
    assert "-o out.safetensors; or -o out/ for a folder" in ema_avg("run", "-o", "out.pkl").stderr


def test_what_can_be_read_is_declared_once() -> None:
    """The suffixes are those that a folder is searched for, and each is named on the page of the formats."""
    assert all(re.search(rf"{re.escape(suffix)}\b", NAME_A_CHECKPOINT) for suffix in SUFFIXES)
    page = (Path(ema_cli.__file__).parent / "help" / "formats.md").read_text()
    assert all(f"`{suffix}`" in page for suffix in SUFFIXES)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["run", "0.8"], "ema-avg run --decay 0.8"),
        (["run", "out.safetensors", "--decay", "0.8"], "ema-avg run --decay 0.8 -o out.safetensors"),
        (["plan", "run", "0.8", "out.safetensors"], "ema-avg plan run --decay 0.8 -o out.safetensors"),
        (["run", "out.safetensors", "0.8"], "ema-avg run --decay 0.8 -o out.safetensors"),
        (["run", "--decay", "0.8", "0.9"], "ema-avg run --decay 0.8 --decay 0.9"),
        (["run", "0.8", "missing.pt"], ""),
        (["out.safetensors", "run", "0.8"], ""),
        (["run", "latte.safetensors", "--decay", "0.8"], ""),
        (["0.8"], ""),
    ],
)
def test_a_decay_or_an_output_without_its_flag(
    arguments: list[str], command: str, tmp_path: Path, ema_avg: Run
) -> None:
    """The hint is the command with the flags, which works. It is not shown for names that may be checkpoints."""
    write_series(tmp_path / "run", random_states(4))
    (tmp_path / "late.safetensors").touch()
    done = ema_avg(*arguments)
    assert done.returncode == 7
    assert command in done.stderr
    assert ("given as options" in done.stderr) == bool(command)
    if command:
        assert ema_avg(*command.split()[1:]).returncode == 0
