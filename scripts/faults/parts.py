"""The parts of a campaign. Each yields its cases one by one: what was tried, and what was wrong after it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

from faults.case import Case, Part
from faults.changes import changes, random_changes
from faults.determinism import determinism
from faults.scene import SHAPES, Ended, Scene
from faults.shim import KILL, SHORT, Fault, Shim
from faults.strangers import strangers

CALLS = (
    "open write pwrite ftruncate fallocate fsync fdatasync close rename unlink mkdir rmdir read pread".split()  # noqa: SIM905
)
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG)
BEFORE_PUBLISHING = ("pwrite", "ftruncate", "fallocate", "fdatasync", "pread")
"""Calls of which none comes after the first rename."""
STORM = 20
END_SECONDS = 10
"""A run that was told to end has this long; two seconds are promised, on a machine that is not busy."""


def errors(root: Path, random: Random) -> Iterator[Case]:
    """Every call on the output, its lock, its report and their folder fails once, with every error."""
    shim = Shim(root)
    scenes = [Scene(root / shape, shape) for shape in SHAPES]
    faults = [(scene, call, code) for scene in scenes for call in CALLS for code in CODES]
    random.shuffle(faults)
    for scene, call, code in faults:
        for number in count(1):
            scene.reset()
            fault = Fault(call=call, number=number, code=code, folder=scene.out)
            ended = scene.run(shim.environment(fault))
            hit = shim.hit()
            if not hit:
                break
            problems = [*_after_error(scene, call, code, hit, ended), *scene.aftermath()]
            yield Case(f"{scene.shape}, {fault}, {_steady(hit)}", problems)


def _after_error(scene: Scene, call: str, code: int, hit: str, ended: Ended) -> list[str]:
    """Say what is wrong after a call failed: what was not needed may fail unnoticed, all else ends in exit 5."""
    facts = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    # The library that has the last word on a file knows one reason only why a file cannot be opened.
    reasons = [os.strerror(code), *(["No such file or directory"] if call == "open" and ".safetensors" in hit else [])]
    told = len(facts) == 1 and str(scene.out) in facts[0] and any(reason in facts[0] for reason in reasons)
    # What cannot be cleared away after the output got its name is swept by the next run.
    may_leave = ended.status == 0 or call in ("unlink", "rmdir")
    checks = {
        f"ended with {ended.status}: {ended.stderr}": ended.status not in (0, 5),
        f"does not tell the path and the error in one line: {ended.stderr}": ended.status == 5 and not told,
        "says that all is well, and the output is not the new one": ended.status == 0 and scene.outputs() != scene.new,
        "failed before anything was published, and the old output is gone": ended.status == 5
        and call in BEFORE_PUBLISHING
        and scene.outputs() != scene.old,
        f"left {scene.leftovers()}": bool(scene.leftovers()) and not may_leave,
    }
    return [*(words for words, wrong in checks.items() if wrong), *scene.whole(earlier=True)]


def kills(root: Path, random: Random) -> Iterator[Case]:
    """The process is killed at every call on the output, its lock, its report and their folder."""
    shim = Shim(root)
    scenes = [Scene(root / shape, shape) for shape in SHAPES]
    points = [(scene, call, earlier) for scene in scenes for call in CALLS for earlier in (True, False)]
    random.shuffle(points)
    for scene, call, earlier in points:
        for number in count(1):
            scene.reset(earlier=earlier)
            fault = Fault(call=call, number=number, code=KILL, folder=scene.out)
            ended = scene.run(shim.environment(fault))
            if not shim.hit():
                break
            wrong_end = [] if ended.status == -signal.SIGKILL else [f"ended with {ended.status}"]
            problems = [*wrong_end, *scene.whole(earlier=earlier), *scene.aftermath()]
            yield Case(f"{scene.shape}, {fault}, {_steady(shim.hit())}", problems)


def reads(root: Path, random: Random) -> Iterator[Case]:
    """Every call on an input fails, is interrupted, or brings half of what was asked for."""
    shim = Shim(root)
    scene = Scene(root / "file")
    faults = [(call, code) for call in ("open", "read", "pread", "close") for code in (SHORT, errno.EINTR, errno.EIO)]
    random.shuffle(faults)
    for call, code in faults:
        for number in count(1):
            scene.reset()
            fault = Fault(call=call, number=number, code=code, folder=scene.inputs)
            ended = scene.run(shim.environment(fault))
            if not shim.hit():
                break
            harmless = code in (SHORT, errno.EINTR) or call == "close"
            wrong = (
                [] if ended.status in ((0,) if harmless else (3, 4)) else [f"ended with {ended.status}: {ended.stderr}"]
            )
            if ended.status and Path(shim.hit()).name not in ended.stderr:
                wrong.append(f"does not tell the file: {ended.stderr}")
            expected = scene.new if ended.status == 0 else scene.old
            wrong += [] if scene.outputs() == expected else ["the output is not the one that it should be"]
            wrong += [f"left {scene.leftovers()}"] if scene.leftovers() else []
            yield Case(f"{fault}, {_steady(shim.hit())}", [*wrong, *scene.aftermath()])


def _measured(scene: Scene) -> float:
    """Return how long a run takes."""
    started = time.monotonic()
    scene.run()
    return time.monotonic() - started


def random_kills(root: Path, random: Random) -> Iterator[Case]:
    """The process is killed at any time."""
    scene = Scene(root / "file", elements=2_000_000)
    seconds = _measured(scene)
    while True:
        after, earlier = random.uniform(0, 1.05 * seconds), random.random() < 0.5
        scene.reset(earlier=earlier)
        process = scene.start()
        time.sleep(after)
        process.kill()
        process.communicate()
        yield Case(f"after {after:.3f} s of {seconds:.3f}", [*scene.whole(earlier=earlier), *scene.aftermath()])


def signals(root: Path, random: Random) -> Iterator[Case]:
    """One signal, two, or many in a row arrive at any time."""
    scene = Scene(root / "file", elements=2_000_000)
    seconds = _measured(scene)
    while True:
        number = random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        times, after = random.choice((1, 2, STORM)), random.uniform(0.1, 1) * seconds
        scene.reset()
        process = scene.start()
        time.sleep(after)
        for _ in range(times):
            process.send_signal(number)
        problems = [*_after_signal(scene, process, number), *scene.aftermath()]
        yield Case(f"{times} x {number.name} after {after:.3f} s of {seconds:.3f}", problems)


def _after_signal(scene: Scene, process: subprocess.Popen[str], number: int) -> list[str]:
    """Say what is wrong after a signal: it may come too late, or while Python itself starts or ends."""
    try:
        _, stderr = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return [f"did not end within {END_SECONDS} s"]
    status = process.returncode
    expected = scene.new if status == 0 else scene.old
    checks = {
        f"ended with {status}: {stderr}": status not in (0, 128 + number, -number),
        "the output is not the one that it should be": scene.outputs() not in (expected, scene.new),
        f"left {scene.leftovers()}": bool(scene.leftovers()),
    }
    return [words for words, wrong in checks.items() if wrong]


def writers(root: Path, _: Random) -> Iterator[Case]:
    """Eight runs write one output together."""
    scene = Scene(root / "file")
    while True:
        scene.reset(earlier=False)
        together = [scene.start() for _ in range(8)]
        errors_told = [process.communicate()[1] for process in together]
        statuses = [process.returncode for process in together]
        checks = {
            f"ended with {statuses}: {errors_told}": not set(statuses) <= {0, 6} or 0 not in statuses,
            "the output is not that of a single run": scene.outputs() != scene.new,
            f"left {scene.leftovers()}": bool(scene.leftovers()),
        }
        yield Case("8 runs", [*(words for words, wrong in checks.items() if wrong), *scene.aftermath()])


def _steady(path: str) -> str:
    """Return the name of a file without what is random in it."""
    parts = Path(path).name.split(".")
    return ".".join("*" if len(part) == 12 and set(part) <= set("0123456789abcdef") else part for part in parts)


PARTS: dict[str, Part] = {
    "errors": errors,
    "kills": kills,
    "reads": reads,
    "random-kills": random_kills,
    "signals": signals,
    "writers": writers,
    "changes": changes,
    "random-changes": random_changes,
    "strangers": strangers,
    "determinism": determinism,
}
NEED_COMPILER = ("errors", "kills", "reads", "changes", "strangers")
