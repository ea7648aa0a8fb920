"""What is named on the command line is used, or refused by its name: a folder whose download failed, a README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from tests.helpers.folders import write_folder, write_shards
from tests.helpers.found import find, names_of
from tests.helpers.program import Run
from tests.helpers.series import write_one

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n"


def text(name: str, content: str = "") -> Callable[[Path], object]:
    """Return the maker of a folder with one file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)

    return make


def saved(name: str, value: object) -> Callable[[Path], object]:
    """Return the maker of a folder with one file of torch."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save(value, folder / name)

    return make


def two(name: str, content: str) -> Callable[[Path], object]:
    """Return the maker of a folder with two files that are no checkpoints."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for number in (4, 5):
            (folder / name.format(number)).write_text(content)

    return make


def runs(folder: Path) -> None:
    """Make a folder of two runs."""
    for run in "ab":
        for number in (1, 2):
            write_one(folder / run / f"ckpt_{number}.pt", step=number)


def linked(folder: Path) -> None:
    """Make a link to an empty folder."""
    (folder.parent / f"of {folder.name}").mkdir()
    folder.symlink_to(f"of {folder.name}")


WITHOUT: dict[str, tuple[Callable[[Path], object], type[EmaAvgError]]] = {
    "empty": (Path.mkdir, NothingMatched),
    "link to an empty folder": (linked, NothingMatched),
    "an empty folder inside": (lambda folder: (folder / "checkpoint-4").mkdir(parents=True), NothingMatched),
    "only a README": (text("README.md", "# model"), NothingMatched),
    "only a configuration": (text("config.json", "{}"), NothingMatched),
    "only logs": (text("events.out.tfevents.1.host", "x"), NothingMatched),
    "only hidden": (text(".ckpt_4.pt", "x"), NothingMatched),
    "a download that did not end": (text("model.safetensors.incomplete", "x"), NothingMatched),
    "only an optimizer": (saved("optimizer.pt", {"state": {}, "param_groups": []}), NothingMatched),
    "numpy arrays": (text("ckpt_4.npy", "\x93NUMPY"), NothingMatched),
    "several runs": (runs, NothingMatched),
    "no weights": (saved("ckpt_4.pt", {"epoch": 1}), InputRefused),
    "junk": (text("ckpt_4.pt", "junk"), InputRefused),
    "two of junk": (two("ckpt_{}.pt", "junk"), InputRefused),
    "two empty files": (two("ckpt_{}.pt", ""), InputRefused),
    "two without weights": (two("optimizer_{}.pt", ""), NothingMatched),
    "a pointer": (text("model.safetensors", POINTER), InputRefused),
    "an index alone": (
        text("model.safetensors.index.json", json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}})),
        InputRefused,
    ),
}
"""Folders without a checkpoint, and the kind of the refusal."""


def series(folder: Path) -> Path:
    """Make a run of three checkpoints."""
    for number in (1, 2, 3):
        write_one(folder / f"ckpt_{number}.pt", number, step=number)
    return folder


@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}*", "{}*/"])
@pytest.mark.parametrize("kind", sorted(WITHOUT))
def test_a_named_folder_without_checkpoints_is_an_error_beside_good_ones(
    tmp_path: Path, kind: str, spelled: str
) -> None:
    """First or last, by name or by a pattern: the error names it, as it does alone."""
    make, refusal = WITHOUT[kind]
    make(tmp_path / "x-folder")
    name, good = spelled.format(tmp_path / "x-folder"), series(tmp_path / "good")
    for names in ([good, name], [name, good], [name, good / "ckpt_1.pt"], [name]):
        with pytest.raises(refusal, match="x-folder") as raised:
            find(*names)
        assert raised.value.hint or raised.value.proposals or refusal is InputRefused


def test_all_of_them_are_named_at_once(tmp_path: Path) -> None:
    """One error lists every name that cannot be used, missing files and empty folders alike."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.pt").touch()
    names = [tmp_path / "empty", tmp_path / "zero.pt", tmp_path / "gone.pt"]
    for more in ([], [series(tmp_path / "good")]):
        with pytest.raises(NothingMatched) as raised:
            find(*names, *more)
        assert all(name.name in raised.value.message for name in names)


def test_the_next_step_is_a_command_without_it(tmp_path: Path, ema_avg: Run) -> None:
    """Every command exits with 7 and states the cause; the command that is proposed runs."""
    series(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    options = ["--decay", "0.9", "-o", "o.safetensors"]
    for command, more in (("average", options), ("plan", options), ("inspect", [])):
        done = ema_avg(command, "good", "empty", *more, COLUMNS="200")
        assert done.returncode == 7
        assert 'no checkpoint in "empty": it is empty; perhaps a download failed' in done.stderr
        same = "ema-avg plan" if command == "plan" else "ema-avg"
        assert (f"alone: {same} good --decay 0.9 -o o.safetensors" in done.stderr) == bool(more)
    assert not (tmp_path / "o.safetensors").exists()
    assert ema_avg("good", *options).returncode == 0


def test_a_pattern_with_good_matches_too_is_not_dropped_from_the_command(tmp_path: Path) -> None:
    """A command without the pattern would drop checkpoints; so the words say what to name."""
    series(tmp_path / "run-1")
    (tmp_path / "run-2").mkdir()
    with pytest.raises(NothingMatched, match="run-2") as raised:
        find(tmp_path / "run-*")
    assert not raised.value.proposals
    assert "name only" in raised.value.hint


def test_a_folder_of_outputs_beside_a_run_is_skipped_with_the_reason(tmp_path: Path) -> None:
    """The second run of one command names the output of the first; it is skipped, as a file is, and listed."""
    good = series(tmp_path / "good")
    (tmp_path / "out").mkdir()
    ema_cli.average([str(good)], decay=0.9, output=tmp_path / "out" / "ema.safetensors")
    found = find(good, tmp_path / "out")
    assert len(found.checkpoints) == 3
    assert [(entry.path.name, entry.made_by_us) for entry in found.skipped] == [("ema.safetensors", True)]


def test_an_empty_member_of_a_run_fails_strict(tmp_path: Path, ema_avg: Run) -> None:
    """An empty folder named like the series is a warning: a run continues without it, CI does not."""
    for step in (1, 2):
        write_folder(tmp_path / "run" / f"checkpoint-{step}", step, value=float(step))
    (tmp_path / "run" / "checkpoint-3").mkdir()
    options = ["--decay", "0.5", "-o", "o.safetensors"]
    done = ema_avg("run", *options, "--strict")
    assert done.returncode == 8
    assert 'skipped empty folders that are named like the series: "checkpoint-3"' in done.stderr
    (tmp_path / "run" / "checkpoint-3").rmdir()
    assert ema_avg("run", *options, "--strict").returncode == 0


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["run:0.2", "again:0.3", "ckpt_1.pt:0.5"], r'"run" is 2 checkpoints, "again" is 0 checkpoints'),
        (["run:0.2", "output.safetensors:0.8"], r'"run" is 2 checkpoints, "output.safetensors" is 0 checkpoints'),
        (["run/ckpt_*.pt:0.2", "run/ckpt_1.pt:0.8"], r"ckpt_\*\.pt\" is 2 checkpoints"),
    ],
)
def test_a_weight_is_never_that_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], wrong: str
) -> None:
    """Where one name means two checkpoints and another none, the counts agree, and the weights would be mixed up."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write_one(tmp_path / "run" / f"ckpt_{number}.pt", number, step=number)
    write_one(tmp_path / "ckpt_1.pt", 3, step=3)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "x.pt").symlink_to("../ckpt_1.pt")
    ema_cli.average(["run"], decay=0.9, output="output.safetensors")
    with pytest.raises(UsageError, match=wrong):
        ema_cli.plan(names, method="manual")


def test_each_name_may_be_a_folder_with_one_checkpoint(tmp_path: Path) -> None:
    """A weight belongs to the one checkpoint of its name, and weights in a list to the checkpoints of one folder."""
    for number in (1, 2):
        write_folder(tmp_path / f"step-{number}", number)
    plan = ema_cli.plan([f"{tmp_path}/step-2:0.25", f"{tmp_path}/step-1:0.75"], method="manual")
    assert [member.weight for member in plan.series.members] == [0.75, 0.25]
    assert len(ema_cli.plan([tmp_path], weights=[0.25, 0.75]).checkpoints) == 2


def sharded(folder: Path) -> None:
    """Make a model of two shards."""
    write_shards(folder, {"a": torch.zeros(2), "b": torch.ones(2)})


WITH: dict[str, Callable[[Path], object]] = {
    "a run": series,
    "a model": write_folder,
    "shards": sharded,
    "one checkpoint below": lambda folder: series(folder / "checkpoints"),
    "one checkpoint beside a README": lambda folder: (
        write_one(folder / "ckpt_1.pt"),
        (folder / "README.md").write_text("#"),
    ),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chosen=st.lists(st.sampled_from([*WITHOUT, *WITH]), min_size=1, max_size=5), by_pattern=st.booleans())
def test_each_name_is_used_or_named_in_the_error(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[str], *, by_pattern: bool
) -> None:
    """Any mixture: either all names have a checkpoint, or the error lists exactly those that have none."""
    root = tmp_path_factory.mktemp("named")
    for number, kind in enumerate(chosen):
        (WITH.get(kind) or WITHOUT[kind][0])(root / f"in-{number}-")
    names = [root / "in-*-"] if by_pattern else [root / f"in-{number}-" for number in range(len(chosen))]
    without = {f"in-{number}-" for number, kind in enumerate(chosen) if kind in WITHOUT}
    if without:
        with pytest.raises((InputRefused, NothingMatched)) as raised:
            find(*names)
        shown = raised.value.message
        named = {f"in-{number}-" for number in range(len(chosen)) if f"in-{number}-" in shown}
        assert named <= without
        assert named == without or "; the same:" in shown or str(names[0]) in shown
    else:
        found = find(*names)
        used = {path.relative_to(root).parts[0] for path in (one.path for one in found.checkpoints)}
        assert used == {f"in-{number}-" for number in range(len(chosen))}
        assert names_of(found)
