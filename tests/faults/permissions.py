"""The part in which a run lacks permissions. If the campaign runs as root, the run gives up root's capabilities."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults.case import Case, wrong
from tests.faults.nursery import Nursery
from tests.faults.runs import Ended
from tests.faults.scene import SHAPES, Scene, scenes_on_demand

_LIBC = ctypes.CDLL(None)
_PR_CAPBSET_DROP, _CAPABILITIES = 24, 64
_REFUSED, _OUTPUT = 3, 5


@dataclass(frozen=True, slots=True)
class Hurdle:
    """A permission that a run lacks."""

    tried: str
    put_up: Callable[[Scene], AbstractContextManager[object]]
    status: int
    """How the run must end."""
    named: Callable[[Scene], Path]
    """The path that a failed run must name."""
    more: Callable[[Scene], tuple[str, ...]] = lambda _: ()
    """Options of the run."""


def permissions(root: Path, random: Random) -> Iterator[Case]:
    """Inputs, folders and reports may not be read, listed or replaced."""
    points = [(shape, hurdle) for shape in SHAPES for hurdle in HURDLES]
    random.shuffle(points)
    scenes = scenes_on_demand(root, nursery=Nursery())
    for shape, hurdle in points:
        scene = scenes(shape)
        scene.reset()
        with hurdle.put_up(scene):
            ended = scene.run(more=hurdle.more(scene), cwd=root, preexec_fn=give_up_privileges)
        problems = _after(scene, hurdle, ended)
        yield Case(f"{shape}, {hurdle.tried}: exit {ended.status}", [*problems, *scene.aftermath()])


def give_up_privileges() -> None:
    """Make permissions apply to root, too: the program that this process runs gets no capability."""
    for capability in range(_CAPABILITIES):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _after(scene: Scene, hurdle: Hurdle, ended: Ended) -> list[str]:
    failed = ended.status != 0
    return wrong(
        {
            f"ended with {ended.status}: {ended.stderr}": ended.status != hurdle.status,
            f"does not name {hurdle.named(scene)}: {ended.stderr}": failed
            and str(hurdle.named(scene)) not in ended.stderr,
            "failed, and the existing output was changed": failed and not scene.untouched(),
            "the output is not the expected one": not failed and scene.outputs() != scene.new,
            f"left {scene.leftovers()}": bool(scene.leftovers()),
            "a traceback": "Traceback" in ended.stderr,
        }
    )


@contextmanager
def _mode(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def _first_input(scene: Scene) -> Path:
    return min(scene.inputs.iterdir())


def _report_elsewhere(scene: Scene) -> Path:
    return scene.inputs.parent / "elsewhere" / "run.html"


@contextmanager
def _read_only_elsewhere(scene: Scene) -> Iterator[None]:
    folder = _report_elsewhere(scene).parent
    folder.mkdir(mode=0o555)
    try:
        yield
    finally:
        folder.rmdir()


@contextmanager
def _folder_instead_of_report(scene: Scene) -> Iterator[None]:
    folder = _report_elsewhere(scene)
    folder.mkdir(parents=True, mode=0o777)
    try:
        yield
    finally:
        shutil.rmtree(folder.parent)


HURDLES = (
    Hurdle("an input may not be read", lambda scene: _mode(_first_input(scene), 0), _REFUSED, _first_input),
    Hurdle("the inputs' folder may not be entered", lambda scene: _mode(scene.inputs, 0), _REFUSED, _first_input),
    Hurdle("the inputs' folder may not be listed", lambda scene: _mode(scene.inputs, 0o311), 0, _first_input),
    Hurdle("the output's folder is read-only", lambda scene: _mode(scene.out, 0o555), _OUTPUT, lambda s: s.out),
    Hurdle("the output's folder may not be entered", lambda scene: _mode(scene.out, 0o666), _OUTPUT, lambda s: s.out),
    Hurdle("the output's folder may not be listed", lambda scene: _mode(scene.out, 0o333), _OUTPUT, lambda s: s.out),
    Hurdle(
        "a report's folder is read-only",
        _read_only_elsewhere,
        _OUTPUT,
        _report_elsewhere,
        lambda scene: ("--report", str(_report_elsewhere(scene))),
    ),
    Hurdle(
        "a folder has the name of a report",
        _folder_instead_of_report,
        _OUTPUT,
        _report_elsewhere,
        lambda scene: ("--report", str(_report_elsewhere(scene))),
    ),
)
