"""The campaign can make every system call fail that the program makes on its files, and tries to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.calls import CALLS
from tests.faults.case import CannotBeTried
from tests.faults.runs import PROGRAM
from tests.faults.scene import Scene
from tests.faults.shim import Shim
from tests.faults.system_calls import KINDS, compare


def test_every_call_is_tried() -> None:
    """What the program may call has errors in the table of the campaign."""
    assert {*KINDS.values()} <= {*CALLS}


@pytest.mark.campaign
@pytest.mark.parametrize(("shape", "form"), [("resumed file", "zip"), ("folder", "shards")])
def test_every_call_of_a_run_is_seen(shape: str, form: str, tmp_path: Path) -> None:
    """``strace`` sees no call on inputs, outputs, locks, reports and folders that the preloaded library misses."""
    try:
        shim = Shim(tmp_path)
        scene = Scene(tmp_path / "scene", shape, form=form)
        scene.reset()
        assert compare(scene.command("-q"), tmp_path / "scene", shim, tmp_path) == []
    except CannotBeTried as lacking:
        pytest.skip(str(lacking))
    assert scene.outputs() == scene.new


@pytest.mark.campaign
def test_a_call_that_the_library_does_not_know_is_noticed(tmp_path: Path) -> None:
    """The comparison itself: a call for which there is no wrapper."""
    file = tmp_path / "files" / "x"
    file.parent.mkdir()
    file.touch()
    code = f"import os\ntry: os.setxattr({str(file)!r}, 'user.x', b'')\nexcept OSError: pass"
    try:
        missed = compare([PROGRAM[0], "-c", code], file.parent, Shim(tmp_path), tmp_path)
    except CannotBeTried as lacking:
        pytest.skip(str(lacking))
    assert missed == [f"setxattr {file}"]
