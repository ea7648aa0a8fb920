"""Foreign files in an output folder that is replaced: none is ever lost, whatever fails, and whenever the run dies."""

from __future__ import annotations

import signal
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

from tests.faults.calls import CALLS
from tests.faults.case import Case, wrong
from tests.faults.nursery import Nursery
from tests.faults.outcome import OUTPUT, RESOURCES
from tests.faults.runs import Ended
from tests.faults.scene import Scene
from tests.faults.shim import KILL, Fault, Shim

FOREIGN: dict[str, tuple[bytes, int]] = {
    "README.md": (b"what this average is for\n", 0o644),
    "key.pem": (b"a key", 0o600),
    "thesis.pdf": (bytes(100_000), 0o640),
}
"""Files that users put into an output folder: contents and permissions."""


def kept_files(root: Path, random: Random) -> Iterator[Case]:
    """Every call fails, or kills the process, while a folder with foreign files is replaced: these files stay."""
    shim = Shim(root)
    scene = Scene(root / "folder", "folder", nursery=Nursery(shim))
    faults = [(call, code) for call, codes in CALLS.items() for code in (KILL, *codes)]
    random.shuffle(faults)
    for call, code in faults:
        for number in count(1):
            scene.reset()
            put_foreign_files(scene.output)
            ended = scene.run(shim.environment(Fault(call=call, number=number, code=code, folder=scene.out)))
            if not (hit := shim.hit()):
                break
            problems = [*_after(scene, ended, killed=code == KILL), *_after_next_run(scene)]
            fault = Fault(call=call, number=number, code=code, folder=scene.out)
            yield Case(f"{fault}, {Path(hit).name}", problems)


def put_foreign_files(folder: Path) -> None:
    """Put the foreign files into a folder."""
    for name, (contents, mode) in FOREIGN.items():
        (folder / name).write_bytes(contents)
        (folder / name).chmod(mode)


def _after(scene: Scene, ended: Ended, *, killed: bool) -> list[str]:
    """Return the problems of a run: where it was killed, the folder may have a hidden name until the next run."""
    allowed = (-signal.SIGKILL,) if killed else (0, OUTPUT, RESOURCES)
    folders = [scene.output, *(scene.out.glob(".ema.*") if killed else ())]
    return wrong(
        {
            f"ended with {ended.status}: {ended.stderr}": ended.status not in allowed,
            **{f"{name} is lost": not any(_is_whole(folder, name) for folder in folders) for name in FOREIGN},
            "reports success, but the output is not the new one": ended.status == 0 and _weights(scene) != scene.new,
            "the output is neither the old one nor the new one": not killed
            and _weights(scene) not in (scene.old, scene.new),
        }
    )


def _after_next_run(scene: Scene) -> list[str]:
    """Return the problems of a run without faults afterwards: everything is in its place, and nothing else."""
    ended = scene.run()
    return wrong(
        {
            f"the next run ended with {ended.status}: {ended.stderr}": ended.status != 0,
            **{f"{name} is not there after the next run": not _is_whole(scene.output, name) for name in FOREIGN},
            "the next run did not write the right output": _weights(scene) != scene.new,
            f"the next run left {scene.leftovers()}": bool(scene.leftovers()),
        }
    )


def _is_whole(folder: Path, name: str) -> bool:
    contents, mode = FOREIGN[name]
    path = folder / name
    return path.is_file() and path.read_bytes() == contents and stat.S_IMODE(path.stat().st_mode) == mode


def _weights(scene: Scene) -> dict[str, str]:
    return {name: digest for name, digest in scene.outputs().items() if Path(name).name not in FOREIGN}
