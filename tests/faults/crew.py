"""Several ranks at a scene: the calls that each makes without faults, and the judge of what they leave."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random

from tests.faults.case import wrong
from tests.faults.launch import AloneRanks, End, Orders, Ranks, TorchrunRanks
from tests.faults.nursery import Nursery
from tests.faults.runs import PROGRAM, Ended
from tests.faults.scene import Scene
from tests.faults.shim import Fault, Shim

MOMENTS = ("planning", "folding", "finishing", "publishing")
"""Of a rank: until it writes data, until it syncs, until a file gets its name, and after that."""
_BEGINS = {"pwrite": "folding", **dict.fromkeys(("fsync", "fdatasync"), "finishing")}
_BEGINS |= dict.fromkeys(("rename", "exchange", "link"), "publishing")
_ELEMENTS = 131_072
_TENSORS = 16
"""Together 8 MiB: each of four ranks folds a part of them."""
Point = tuple[str, int]
"""A kind of call, and which of its kind, from 1 on."""


class Crew:
    """Ranks that replace the outputs of a scene.

    Args:
        root: folder of everything.
        shape: of the outputs, a key of ``SHAPES``.
        ranks: how many.
        nursery: forks ranks; it has imported torch.
        shim: makes faults.

    """

    def __init__(self, root: Path, shape: str, ranks: int, nursery: Nursery, shim: Shim) -> None:
        self.scene = Scene(root, shape, elements=_ELEMENTS, tensors=_TENSORS, nursery=nursery)
        self.ranks, self._nursery, self._shim = ranks, nursery, shim
        self.folder = root
        """Of the inputs and outputs, in which calls are counted."""
        self._watch = root.with_name(f"{root.name} watched.trace")
        self._pristine = root.with_name(f"{root.name} pristine")
        shutil.copytree(self.scene.inputs, self._pristine)
        self._points, self.seconds = self._traced()

    def _traced(self) -> tuple[list[dict[str, list[Point]]], float]:
        """Return the calls of each rank in a run without faults, by moment, and how long the run took."""
        self.scene.reset()
        traces = [self.folder.with_name(f"{self.folder.name} {rank}.trace") for rank in range(self.ranks)]
        started = time.time()
        end = self.start("alone", {rank: self._tracing(trace) for rank, trace in enumerate(traces)}).end()
        if any(end.statuses) or self.scene.outputs() != self.scene.new:
            raise SystemExit(f"{self.ranks} ranks do not even run without faults: {end.statuses}, {end.stderr}")
        return [_by_moment(trace.read_text()) for trace in traces], end.at - started

    def _tracing(self, trace: Path) -> Orders:
        trace.unlink(missing_ok=True)
        return Orders(variables=self._shim.tracing(self.folder, trace, harmless=True))

    def start(self, launcher: str, orders: Mapping[int, Orders] | None = None) -> Ranks:
        """Start the ranks: with ``torchrun``, or ``alone``, so that nobody ends the others when one fails."""
        if launcher == "alone":
            return AloneRanks(self._nursery, self._command(), self.ranks, orders or {})
        return TorchrunRanks(self.folder.with_name("orders"), self._command(), self.ranks, orders or {})

    def _command(self) -> list[str]:
        """Return the command line of every rank, in which the series is given as its folder."""
        inputs = str(self.scene.inputs)
        given = self.scene.command("-q")[len(PROGRAM) :]
        return [*PROGRAM, inputs, *(part for part in given if not part.startswith(f"{inputs}/"))]

    def point(self, rank: int, moment: str, random: Random) -> Point | None:
        """Return a call that a rank makes at a moment, if it makes any: kinds of calls are equally likely."""
        calls = self._points[rank].get(moment, [])
        if not calls:
            return None
        kind = random.choice(sorted({call for call, _ in calls}))
        return random.choice([point for point in calls if point[0] == kind])

    def fault(self, point: Point, code: int, command: str = "") -> Fault:
        """Return the fault at a call."""
        return Fault(call=point[0], number=point[1], code=code, folder=self.folder, command=command)

    def reset(self, *, earlier: bool = True) -> None:
        """Restore the inputs, and the outputs of the earlier run, if there was one."""
        self.restore_inputs()
        self.scene.reset(earlier=earlier)

    def restore_inputs(self) -> None:
        """Restore the inputs."""
        shutil.rmtree(self.scene.inputs)
        shutil.copytree(self._pristine, self.scene.inputs)

    def watched(self) -> Orders:
        """Return the orders of a rank whose calls are listed, for ``has_begun``."""
        return self._tracing(self._watch)

    def has_begun(self) -> bool:
        """Return whether the watched rank has met the others: it looks at the inputs after that."""
        return self._watch.exists()

    def judge(self, end: End, *, earlier: bool, met: bool = True) -> list[str]:
        """Return the problems of the ends of all ranks, and of the outputs: the old ones, or the new ones.

        A rank that ended before it had ``met`` the others cannot be missed by them: their launcher ends them.
        """
        scene = self.scene
        checks = {
            f"ranks did not end by themselves: {end.statuses}, {end.stderr}": end.asked and met,
            f"ranks did not end: {end.statuses}": end.hung,
            f"torchrun left processes {end.survivors}": bool(end.survivors),
            f"ended with {end.statuses}, and the output is not the new one": 0 in end.statuses
            and scene.outputs() != scene.new,
            f"a traceback: {end.stderr}": "ema_cli" in end.stderr.partition("Traceback")[2],
        }
        return [*wrong(checks), *scene.whole(earlier=earlier)]

    def aftermath(self, launcher: str | None) -> list[str]:
        """Return the problems of a run without faults afterwards: of one process, or of ranks with a launcher."""
        if launcher is None:
            return self.scene.aftermath()
        end = self.start(launcher).end()
        return self.scene.after(Ended(max(map(abs, end.statuses)), end.stderr))


def _by_moment(trace: str) -> dict[str, list[Point]]:
    """Return the calls of a trace by moment."""
    counts: Counter[str] = Counter()
    found: dict[str, list[Point]] = {moment: [] for moment in MOMENTS}
    now = MOMENTS[0]
    for line in trace.splitlines():
        call, path = line.split("\t", 1)
        counts[call] += 1
        if "/out/" in path:
            now = max(now, _BEGINS.get(call, now), key=MOMENTS.index)
        found[now].append((call, counts[call]))
    return found


def crews_on_demand(root: Path) -> tuple[Shim, Callable[[str, int], Crew]]:
    """Return the maker of faults, and a function that makes the crew of a shape and a number of ranks, once each."""
    shim = Shim(root)
    nursery = Nursery(shim, ("torch.distributed",))
    return shim, cache(lambda shape, ranks: Crew(root / f"{shape} {ranks}", shape, ranks, nursery, shim))
