"""The part with a disk that is full or fills up.

``python -m tests.faults.disk FOLDER SEED``, inside a mount namespace, mounts a small disk and prints a JSON
document per case.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

from tests.faults.case import CannotBeTried, Case
from tests.faults.nursery import Nursery
from tests.faults.outcome import after_refusal
from tests.faults.runs import PATIENCE_SECONDS, Ended
from tests.faults.scene import SHAPES, Scene, scenes_on_demand
from tests.faults.shim import STOP, Fault, Shim

_PAGE = 4096
_SIZE = 8 << 20
_NAMES = 1000
_NAMESPACES = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
_FULL = (os.strerror(errno.ENOSPC),)
_PAUSES = (("write", 1), ("pwrite", 2), ("pwrite", 3), ("fsync", 1), ("fdatasync", 1), ("rename", 1))
"""The disk fills up before these calls on the outputs."""


def full_disk(root: Path, random: Random) -> Iterator[Case]:
    """The disk has room for nothing, for a part, for all but the report, for few files, or fills up during the run."""
    command = [*_namespace(), sys.executable, "-m", "tests.faults.disk", str(root), str(random.random())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield Case(**json.loads(line))
        finally:
            process.terminate()
    if process.returncode not in (0, -signal.SIGTERM):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def _namespace() -> list[str]:
    """Return a command prefix that allows mounting."""
    for command in _NAMESPACES:
        mounts = [*command, "sh", "-c", "mount -t tmpfs none /mnt"]
        with contextlib.suppress(OSError):
            if subprocess.run(mounts, capture_output=True, check=False).returncode == 0:
                return command
    raise CannotBeTried("mounting is not allowed, neither as root nor in a user namespace")


class Disk:
    """A small file system in memory.

    Args:
        folder: the mount point.

    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._filler = folder / "filler"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},nr_inodes={_NAMES}", "none", str(folder)], check=True
        )

    def fill(self, free_bytes: int) -> None:
        """Leave this many bytes free, rounded down to pages."""
        left = os.statvfs(self.folder)
        taken = left.f_bavail * left.f_frsize - free_bytes
        with self._filler.open("ab") as file:
            if taken > 0:
                os.posix_fallocate(file.fileno(), self._filler.stat().st_size, taken)

    def leave_names(self, count: int) -> None:
        """Leave room for this many files and folders of any size."""
        now = os.statvfs(self.folder)
        self._remount(now.f_files - now.f_ffree + count)

    def clear(self) -> None:
        """Remove the filler, and leave room for any number of files."""
        self._filler.unlink(missing_ok=True)
        self._remount(_NAMES)

    def _remount(self, names: int) -> None:
        subprocess.run(["mount", "-o", f"remount,nr_inodes={names}", str(self.folder)], check=True)


def _cases(root: Path, random: Random) -> Iterator[Case]:
    disk = Disk(root / "disk")
    scenes = scenes_on_demand(root, out=disk.folder / "out", nursery=Nursery())
    shim = Shim(root) if shutil.which("gcc") else None

    def scene(shape: str) -> Scene:
        disk.clear()
        shutil.rmtree(disk.folder / "out", ignore_errors=True)
        return scenes(shape)

    pages = [_too_small(disk, shape, scene, lambda n: disk.fill(n * _PAGE), "pages") for shape in SHAPES]
    names = [_too_small(disk, shape, scene, disk.leave_names, "files") for shape in SHAPES]
    late = [_filling(disk, shape, scene, shim) for shape in SHAPES if shim]
    sources = [*pages, *names, *late]
    while sources:  # one of each in turn
        source = random.choice(sources)
        case = next(source, None)
        if case is None:
            sources.remove(source)
        else:
            yield case


def _too_small(
    disk: Disk, shape: str, scene_of: Callable[[str], Scene], leave: Callable[[int], None], what: str
) -> Iterator[Case]:
    """Leave room for more and more pages or files, until a run succeeds three times."""
    for earlier in (True, False):
        succeeded = 0
        for count in itertools.count():
            scene = scene_of(shape)
            _prepare(scene, earlier=earlier)
            leave(count)
            ended = scene.run()
            succeeded += ended.status == 0
            yield _judged(disk, scene, f"room for {count} {what}", ended, earlier=earlier)
            if succeeded == 3:
                break


def _filling(disk: Disk, shape: str, scene_of: Callable[[str], Scene], shim: Shim) -> Iterator[Case]:
    """Stop a run before a call, fill the disk, and continue the run."""
    for (call, number), no_reserve, earlier in itertools.product(_PAUSES, (False, True), (True, False)):
        scene = scene_of(shape)
        _prepare(scene, earlier=earlier)
        fault = Fault(call=call, number=number, code=STOP, folder=scene.out, no_reserve=no_reserve)
        process = scene.start(shim.environment(fault))
        stopped = _wait_for_stop(process)
        disk.fill(0)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        if stopped:
            words = f"fills up before {call} {number}{', nothing reserved' if no_reserve else ''}"
            yield _judged(disk, scene, words, Ended(process.returncode, stderr), earlier=earlier)


def _wait_for_stop(process: subprocess.Popen[str]) -> bool:
    """Wait until a process has stopped; return whether it stopped before it ended."""
    while process.poll() is None:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return True
        time.sleep(0.005)
    return False


def _prepare(scene: Scene, *, earlier: bool) -> None:
    scene.out.mkdir(exist_ok=True)
    scene.reset(earlier=earlier)


def _judged(disk: Disk, scene: Scene, tried: str, ended: Ended, *, earlier: bool) -> Case:
    problems = after_refusal(scene, ended, _FULL, earlier=earlier)
    disk.clear()
    problems += scene.aftermath()
    shutil.rmtree(scene.out)
    words = "an existing output" if earlier else "no output"
    return Case(f"{scene.shape}, {words}, {tried}: exit {ended.status}", problems)


def main() -> None:
    """Print the cases."""
    folder, seed = sys.argv[1:]
    for case in _cases(Path(folder), Random(seed)):
        print(json.dumps(asdict(case)), flush=True)


if __name__ == "__main__":
    main()
