"""Folders above an output, a report or an index: made where they are missing, and not left behind by a failure."""

from __future__ import annotations

import math
import os
import random
import stat
import threading
from pathlib import Path

import pytest
import torch

import ema_cli
from ema_cli.errors import EmaAvgError, OutputError, StrictWarnings
from ema_cli.write.lock import output_lock
from ema_cli.write.parent_folders import ParentFolders
from ema_cli.write.small_file import SmallFile, write_atomically
from ema_cli.write.writable import check_writable
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series


def test_all_that_a_run_writes_may_be_in_new_folders(tmp_path: Path, ema_avg: Run) -> None:
    """Outputs, further reports and the index of a batch; a folder output too. A plan makes none."""
    write_series(tmp_path / "run", random_states(2))
    command = ["run", "--decay", "0.5", "-o", "a/b/ema.safetensors", "--report", "c/d/r.html"]
    assert ema_avg(*command, "--dry-run").returncode == 0
    assert listing(tmp_path) == {"run"}
    assert ema_avg(*command).returncode == 0
    assert (tmp_path / "a/b/ema.safetensors").exists()
    assert (tmp_path / "c/d/r.html").exists()
    assert ema_avg("run", "--decay", "0.5", "-o", "e/f/").returncode == 0
    assert (tmp_path / "e/f/model.safetensors").exists()
    batch = ["batch", "run", "--decay", "0.5", "-o", "g/{name}/x.safetensors", "--index", "h/i/index.json"]
    assert ema_avg(*batch).returncode == 0
    assert (tmp_path / "g/run/x.safetensors").exists()
    assert (tmp_path / "h/i/index.json").exists()


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    """Neither of the output nor of a report; folders that were there stay."""
    paths = write_series(tmp_path / "run", random_states(2))
    (tmp_path / "mine").mkdir()
    with pytest.raises(StrictWarnings):
        ema_cli.average(paths, decay=0.9, output=tmp_path / "mine/a/b/ema.safetensors", strict=True)
    assert listing(tmp_path / "mine") == set()
    write_series(tmp_path / "run", [{"w": torch.tensor([1.0, number, math.nan])} for number in range(2)])
    with pytest.raises(EmaAvgError, match="holds nan"):
        ema_cli.average(
            tmp_path / "run", decay=0.9, output=tmp_path / "mine/a/ema.safetensors", report=tmp_path / "mine/r/r.md"
        )
    assert listing(tmp_path / "mine") == set()


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path) -> None:
    """Whatever ends the block, also if it is no error."""

    def interrupted() -> None:
        with output_lock(tmp_path / "a" / "b" / "ema.safetensors"):
            assert (tmp_path / "a" / "b").is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert listing(tmp_path) == set()


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    """Another program may have put it there."""

    def failing() -> None:
        with output_lock(tmp_path / "a" / "b" / "ema.safetensors"):
            (tmp_path / "a" / "note.txt").write_text("mine")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        failing()
    assert listing(tmp_path / "a") == {"note.txt"}


def test_a_small_file_that_is_not_published_leaves_no_folder(tmp_path: Path) -> None:
    """Written under a temporary name, then discarded; a published one stays."""
    file = SmallFile(tmp_path / "a" / "b" / "r.md")
    file.write(b"text")
    file.discard()
    assert listing(tmp_path) == set()
    write_atomically(tmp_path / "a" / "b" / "r.md", b"text")
    assert (tmp_path / "a" / "b" / "r.md").read_bytes() == b"text"


def test_the_umask_decides_the_permissions(tmp_path: Path) -> None:
    """As for a folder that the user makes."""
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a" / "b" / "r.md", b"text")
    finally:
        os.umask(old)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")} == {0o750}


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    """New folders are made where the link leads."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    write_atomically(tmp_path / "link" / "new" / "r.md", b"text")
    assert (tmp_path / "disk" / "new" / "r.md").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/ema.safetensors", '/file" is a file, not a folder'),
        ("file/a/b/ema.safetensors", '/file" is a file, not a folder'),
        ("gone/ema.safetensors", '/gone" is a link that leads to no folder'),
        ("x" * 300 + "/ema.safetensors", "File name too long"),
        ("new/" + "x" * 300 + ".safetensors", "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_made_is_an_error_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    """The message names what is in the way, for outputs and for reports; nothing is made."""
    paths = write_series(tmp_path / "run", random_states(2))
    (tmp_path / "file").write_text("a file")
    (tmp_path / "gone").symlink_to("nowhere")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=message):
        ema_cli.average(paths, decay=0.5, output=tmp_path / name)
    report = (tmp_path / name).with_suffix(".md")
    with pytest.raises(OutputError, match=message):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "new" / "ema.safetensors", report=report)
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    """The folder above the new ones, not one of them."""
    (tmp_path / "shut").mkdir(mode=0o555)
    with pytest.raises(OutputError, match=r'no folder "a" can be made in ".*shut": Permission denied'):
        check_writable(tmp_path / "shut" / "a" / "b" / "r.md")


def test_a_folder_that_another_run_removes_is_made_again(tmp_path: Path) -> None:
    """Between the moment when a folder is made and that when a file is made in it."""
    path, tries = tmp_path / "a" / "b" / "f", []

    def create() -> int:
        tries.append(path.parent.is_dir())
        if len(tries) == 2:  # the folders are there: another run removes them
            path.parent.rmdir()
            path.parent.parent.rmdir()
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    os.close(ParentFolders(path).creating(create))
    assert tries == [False, True, True]
    assert path.exists()


def test_runs_in_one_new_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Half of them fail and remove the folder if it is empty; no other one notices, and what is published stays."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for turn in range(30):
            path = tmp_path / "new" / "deep" / f"{number}_{turn}.md"
            try:
                with output_lock(path.with_suffix(".safetensors")):
                    if chance.random() < 0.7:
                        raise InterruptedError
                    write_atomically(path, b"text")
            except InterruptedError:
                continue
            except BaseException as failure:  # noqa: BLE001 - any is a failure of the test
                failures.append(failure)
            path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
