"""The arguments of a command line: files, folders and patterns, and the files in them that are skipped."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, UsageError
from ema_cli.events import Event, Opening
from ema_cli.options.average import make_options
from tests.helpers.found import find, names_of, skipped
from tests.helpers.series import open_files, random_states, write_one, write_series


def test_files_are_taken_as_they_are_named(tmp_path: Path) -> None:
    """Named files keep the order of the command line, whatever they are called."""
    paths = [write_one(tmp_path / name) for name in ("b.pt", "a.weird", "best.ckpt")]
    assert names_of(find(*paths)) == ["b.pt", "a.weird", "best.ckpt"]


def test_a_folder_is_searched_in_natural_order(tmp_path: Path) -> None:
    """Every file with a checkpoint's suffix is taken, 2 before 10; other files and folders are not."""
    for name in ("ckpt_10.pt", "ckpt_2.pt", "ckpt_1.PTH", "ckpt_3.safetensors.json", "notes.txt", ".hidden_4.pt"):
        write_one(tmp_path / name)
    (tmp_path / "folder.pt").mkdir()
    assert names_of(find(tmp_path)) == ["ckpt_1.PTH", "ckpt_2.pt", "ckpt_10.pt"]


def test_the_order_of_a_folder_does_not_depend_on_its_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different names with the same number are always in the same order."""
    paths = [write_one(tmp_path / name) for name in ("ckpt_1.pt", "ckpt_01.pt", "ckpt_001.pt")]
    orders = []
    for listing in (paths, paths[::-1]):
        monkeypatch.setattr(Path, "iterdir", lambda _, listing=listing: iter(listing))
        orders.append(names_of(find(tmp_path)))
    assert orders[0] == orders[1]


def test_patterns_match_in_natural_order(tmp_path: Path) -> None:
    """A quoted pattern is expanded by the program, folders in it are searched."""
    write_one(tmp_path / "checkpoint-1000" / "model.pt")
    write_one(tmp_path / "checkpoint-200" / "model.pt")
    found = find(f"{tmp_path}/checkpoint-*")
    assert [checkpoint.path.parent.name for checkpoint in found.checkpoints] == ["checkpoint-200", "checkpoint-1000"]
    assert len(find(f"{tmp_path}/**/*.pt").checkpoints) == 2


def test_a_file_with_a_pattern_as_its_name_is_that_file(tmp_path: Path) -> None:
    """``ckpt[1].pt`` is taken literally when it exists."""
    write_one(tmp_path / "ckpt1.pt")
    path = write_one(tmp_path / "ckpt[1].pt")
    assert names_of(find(path)) == ["ckpt[1].pt"]


def test_a_dangling_link_named_like_a_pattern_ends(tmp_path: Path) -> None:
    """A link to nothing that matches itself as a pattern is missing, not an endless search."""
    (tmp_path / "a*.pt").symlink_to(tmp_path / "gone")
    with pytest.raises(NothingMatched):
        find(tmp_path / "a*.pt")


@pytest.mark.parametrize("name", ["missing.pt", "missing_*.pt", "no/such/folder/x.pt"])
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    """A missing file and a pattern without a match are errors with the name."""
    with pytest.raises(NothingMatched, match=name.replace("*", r"\*")):
        find(tmp_path / name)


def test_an_impossible_name_is_refused_with_a_message(tmp_path: Path) -> None:
    """A name that the system cannot even look up is refused like any other, without a traceback."""
    with pytest.raises(InputRefused, match="cannot be searched: File name too long"):
        find(tmp_path / ("x" * 5000))


def test_a_folder_that_cannot_be_read_is_refused_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing permissions are reported with the name of the folder."""

    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputRefused, match="cannot be listed: Permission denied"):
        find(tmp_path)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """Several unusable inputs are one error that lists them; a missing input decides its kind."""
    good = write_one(tmp_path / "good.pt")
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"not a checkpoint")
    with pytest.raises(NothingMatched) as refused:
        find(good, bad, tmp_path / "missing.pt")
    assert refused.value.message.splitlines()[0] == "2 inputs cannot be used:"
    assert "bad.pt" in refused.value.message
    assert "missing.pt" in refused.value.message


def test_many_faults_are_capped(tmp_path: Path) -> None:
    """A long list of faults is shortened, and the rest counted."""
    with pytest.raises(NothingMatched, match="25 inputs cannot be used:") as refused:
        find(*(tmp_path / f"missing_{k}.pt" for k in range(25)))
    lines = refused.value.message.splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 15 more"


def test_an_empty_folder_is_nothing(tmp_path: Path) -> None:
    """The error for a folder without checkpoints says how checkpoints are called."""
    with pytest.raises(NothingMatched, match="no checkpoint in") as refused:
        find(tmp_path)
    assert ".safetensors" in refused.value.hint


def test_the_error_for_an_unusable_folder_has_the_reasons(tmp_path: Path) -> None:
    """When everything was skipped, the reasons are in the message."""
    write_one(tmp_path / "optimizer.pt")
    with pytest.raises(NothingMatched, match=r"optimizer\.pt.*state of the trainer"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"])
def test_the_trainers_state_is_skipped_in_folders(name: str, tmp_path: Path) -> None:
    """Optimizer, scheduler and random states are no models; named directly, a file is taken."""
    write_one(tmp_path / "model_1.pt")
    write_one(tmp_path / name)
    found = find(tmp_path)
    assert names_of(found) == ["model_1.pt"]
    assert skipped(found) == {name: "state of the trainer, not a model"}


@pytest.mark.parametrize("name", ["last.ckpt", "last-v1.ckpt", "best.pt", "model_final.pth", "latest.pt", "ema.pt"])
def test_aliases_are_skipped_in_a_numbered_series(name: str, tmp_path: Path) -> None:
    """``last.ckpt`` is a copy of a checkpoint that has its own number: it would be folded twice."""
    write_one(tmp_path / "epoch=1.ckpt")
    write_one(tmp_path / "epoch=2.ckpt")
    write_one(tmp_path / name)
    found = find(tmp_path)
    assert names_of(found) == ["epoch=1.ckpt", "epoch=2.ckpt"]
    reasons = {"ema.pt": "an average", "last-v1.ckpt": "perhaps of another run"}
    assert reasons.get(name, "a copy of") in skipped(found)[name]


def test_aliases_are_taken_where_nothing_is_numbered(tmp_path: Path) -> None:
    """A folder of unnumbered names has no series that an alias could repeat."""
    for name in ("best.pt", "last.pt"):
        write_one(tmp_path / name)
    assert names_of(find(tmp_path)) == ["best.pt", "last.pt"]


def test_a_numbered_best_is_a_checkpoint(tmp_path: Path) -> None:
    """``best-epoch=3`` has a number of its own."""
    for name in ("best-epoch=3.ckpt", "best-epoch=7.ckpt"):
        write_one(tmp_path / name)
    assert len(find(tmp_path).checkpoints) == 2


def test_own_outputs_are_skipped(tmp_path: Path) -> None:
    """An average that was written among its checkpoints is not averaged again, in a folder or by a pattern."""
    paths = write_series(tmp_path, random_states(2), form="safetensors")
    ema_cli.average(paths, decay=0.5, output=tmp_path / "out.safetensors")
    for name in (str(tmp_path), f"{tmp_path}/*.safetensors"):
        found = find(name)
        assert names_of(found) == ["ckpt_100.safetensors", "ckpt_200.safetensors"]
        assert skipped(found) == {"out.safetensors": "an output of ema-avg"}


def test_averages_can_be_averaged_with_a_warning(tmp_path: Path) -> None:
    """When all inputs are previous averages, they are averaged."""
    paths = write_series(tmp_path, random_states(2))
    outputs = [tmp_path / f"e{k}.safetensors" for k in range(2)]
    for output in outputs:
        ema_cli.average(paths, decay=0.5, output=output)
    found = find(*outputs)
    assert len(found.checkpoints) == 2
    assert [warning.code for warning in found.warnings] == ["averages-averaged"]


def test_an_incomplete_file_in_a_folder_is_skipped_with_a_warning(tmp_path: Path) -> None:
    """A file that is incomplete or truncated does not stop the folder; named directly it is refused."""
    paths = write_series(tmp_path, random_states(3))
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    found = find(tmp_path)
    assert names_of(found) == ["ckpt_100.pt", "ckpt_200.pt"]
    assert skipped(found) == {}
    (warning,) = found.warnings
    assert warning.code == "unusable-left-out"
    assert "ckpt_300.pt" in warning.message
    with pytest.raises(InputRefused, match=r"ckpt_300\.pt"):
        find(*paths)


def test_a_file_is_folded_once(tmp_path: Path) -> None:
    """Two names of one file, by repetition, link or hard link, are one checkpoint."""
    path = write_one(tmp_path / "a.pt")
    (tmp_path / "link.pt").symlink_to(path)
    os.link(path, tmp_path / "hard.pt")
    found = find(path, path, tmp_path / "link.pt", tmp_path / "hard.pt")
    assert names_of(found) == ["a.pt"]
    reasons = skipped(found)
    assert reasons.pop("a.pt") == "named twice"
    assert all("the same file as" in reason for reason in reasons.values())
    assert len(found.skipped) == 3


@pytest.mark.parametrize("marker", ["model.safetensors.index.json", "pytorch_model.bin.index.json", ".metadata"])
def test_a_damaged_sharded_checkpoint_is_refused_with_a_message(marker: str, tmp_path: Path) -> None:
    """The shards of one model are not checkpoints of a series, even if their index is damaged."""
    write_one(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / marker).write_text("{}")
    with pytest.raises(InputRefused, match=re.escape(marker)):
        find(tmp_path)


def test_a_shard_is_refused_with_a_message(tmp_path: Path) -> None:
    """A shard that is named is not a whole model; its folder may be one."""
    with pytest.raises(InputRefused, match="is one of the 2 shards of a model") as refused:
        find(write_one(tmp_path / "model-00001-of-00002.pt"))
    assert refused.value.hint == f"name the folder that contains all shards: {tmp_path}"


@pytest.mark.parametrize(
    ("spoil", "kind"), [("missing", NothingMatched), ("garbage", InputRefused), ("key", UsageError)]
)
def test_no_file_stays_open_after_a_failure(spoil: str, kind: type[EmaAvgError], tmp_path: Path) -> None:
    """Whatever goes wrong while searching, the files that were opened are closed."""
    paths: list[Path] = write_series(tmp_path, random_states(3))
    options: dict[str, Any] = {}
    if spoil == "missing":
        paths.append(tmp_path / "missing.pt")
    elif spoil == "garbage":
        paths.append(tmp_path / "garbage.pt")
        paths[-1].write_bytes(b"garbage")
    else:
        options = {"key": "no.such.key"}
    before = open_files()
    with pytest.raises(kind):
        discover(make_options(paths, **options))
    assert open_files() == before


def test_skipped_files_are_closed(tmp_path: Path) -> None:
    """Repeated files and the run's own outputs do not stay open."""
    paths = write_series(tmp_path, random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "out.safetensors")
    before = open_files()
    found = discover(make_options([*paths, paths[0], tmp_path / "out.safetensors"]))
    assert open_files() == before + 2
    close_all(found.checkpoints)
    assert open_files() == before


def test_opening_is_announced(tmp_path: Path) -> None:
    """A listener is informed which of how many inputs is being opened."""
    events: list[Event] = []
    found = discover(make_options(write_series(tmp_path, random_states(3))), events.append)
    close_all(found.checkpoints)
    assert events == [Opening(done=k, total=3) for k in range(3)]


def test_hostile_names_are_shown_harmlessly(tmp_path: Path) -> None:
    """A file name with escape sequences reaches messages escaped."""
    path = tmp_path / "evil\x1b[31m\n::error::.pt"
    path.write_bytes(b"garbage")
    with pytest.raises(InputRefused) as refused:
        find(path)
    assert "\x1b" not in refused.value.message
    assert "\n" not in refused.value.message


@given(names=st.sets(st.sampled_from([f"{stem}{n}.pt" for stem in ("a", "b_") for n in (1, 2, 10)]), min_size=1))
@settings(max_examples=15, deadline=None)
def test_a_folder_and_its_files_are_the_same_inputs(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    """Naming a folder finds the same as naming its files."""
    folder = tmp_path_factory.mktemp("run")
    for name in names:
        torch.save({"w": torch.ones(1)}, folder / name)
    assert set(names_of(find(folder))) == set(names_of(find(*folder.iterdir()))) == names
