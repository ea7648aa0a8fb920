"""Another program changes files at the output during a run: its files are neither published nor lost."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults.case import Case
from tests.faults.nursery import Nursery
from tests.faults.runs import Ended
from tests.faults.scene import SHAPES, Scene
from tests.faults.shim import RUN, Fault, Shim

_EARLY = ("pwrite", "ftruncate", "fallocate", "fdatasync")
"""Calls that are never made after the first rename."""
_FOREIGN = "of another program"
_COMMANDS: dict[str, str] = {
    "the folder is removed": "rm -rf {out}",
    "the folder is renamed": "mv {out} {out}.away",
    "the folder is replaced": "mv {out} {out}.away; mkdir {out}",
    "the partial file is removed": "rm -rf {out}/.*.partial",
    "the partial file is truncated": "find {out} -path '*.partial*' -type f -exec truncate -s 100 {{}} +",
    "the locks are removed": "rm -f {out}/.*.lock",
    "the outputs are removed": "rm -rf {outputs}",
    "the outputs are replaced": "for name in {outputs}; do rm -rf $name; echo -n {foreign} > $name; done",
}


def foreign_files(root: Path, random: Random) -> Iterator[Case]:
    """At a call on the output, the partial file, the output or its folder is removed, replaced or truncated."""
    shim = Shim(root)
    nursery = Nursery(shim)
    scenes = [Scene(root / shape, shape, nursery=nursery) for shape in SHAPES]
    calls = {scene.shape: _calls(scene, shim, root / "trace") for scene in scenes}
    while True:
        scene, what, earlier = random.choice(scenes), random.choice([*_COMMANDS]), random.random() < 0.5
        call = random.choice([*calls[scene.shape]])
        number = random.randint(1, calls[scene.shape][call])
        outputs = shlex.join(str(scene.out / top) for top in sorted({Path(name).parts[0] for name in scene.new}))
        command = _COMMANDS[what].format(
            out=shlex.quote(str(scene.out)), outputs=outputs, foreign=shlex.quote(_FOREIGN)
        )
        shutil.rmtree(f"{scene.out}.away", ignore_errors=True)
        scene.out.mkdir(exist_ok=True)
        scene.reset(earlier=earlier)
        ended = scene.run(
            shim.environment(Fault(call=call, number=number, code=RUN, folder=scene.out, command=command))
        )
        if not shim.hit():
            continue
        problems = _after(scene, what, call, ended, earlier=earlier)
        yield Case(f"{scene.shape}{', over an existing output' * earlier}: {what} before {call} {number}", problems)


def _calls(scene: Scene, shim: Shim, trace: Path) -> Counter[str]:
    """Return how often a run makes each call that changes something at the output."""
    trace.unlink(missing_ok=True)
    scene.reset(earlier=False)
    scene.run(shim.tracing(scene.out, trace))
    return Counter(line.partition("\t")[0] for line in trace.read_text().splitlines())


def _after(scene: Scene, what: str, call: str, ended: Ended, *, earlier: bool) -> list[str]:
    """Return the problems: an output is complete, or a file of the other program, and the exit status fits."""
    tops = sorted({Path(name).parts[0] for name in scene.new})
    put = [top for top in tops if _is_foreign(scene.out / top)]
    lost = what == "the outputs are replaced" and call in _EARLY and len(put) < len(tops)
    found = {name: digest for name, digest in scene.read(scene.out).items() if Path(name).parts[0] in tops}
    intact = [
        top
        for top in tops
        if top in put
        or any(_under(found, top) == _under(kind, top) for kind in (scene.old if earlier else {}, scene.new))
    ]
    gone = what in (
        "the folder is removed",
        "the folder is renamed",
        "the folder is replaced",
        "the outputs are removed",
    )
    # A program that truncates a file after the last check could as well do so after the rename.
    late = what == "the partial file is truncated" and call not in _EARLY
    broken = [top for top in tops if top not in intact and not (gone and not _under(found, top))]
    checks = {
        f"ended with {ended.status}: {ended.stderr}": ended.status not in (0, 5),
        "the file of the other program was lost": lost,
        f"{broken} is neither the old one nor the new one": bool(broken) and not late,
        "reports success, but the output is not there": ended.status == 0 and call in _EARLY and found != scene.new,
    }
    return [words for words, wrong in checks.items() if wrong]


def _is_foreign(path: Path) -> bool:
    return path.is_file() and path.read_bytes() == _FOREIGN.encode()


def _under(contents: dict[str, str], top: str) -> dict[str, str]:
    return {name: digest for name, digest in contents.items() if Path(name).parts[0] == top}
