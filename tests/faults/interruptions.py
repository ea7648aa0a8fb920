"""Parts in which runs are killed, interrupted, or started together, at any time."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from tests.faults.case import Case, wrong
from tests.faults.nursery import Nursery
from tests.faults.runs import Ended
from tests.faults.scene import Scene, scenes_on_demand

STORM = 20
END_SECONDS = 10
"""A run has this long to end after a signal; two seconds are promised on an idle machine."""
MOST_KILLS = 30
_LARGE = 2_000_000


def random_kills(root: Path, random: Random) -> Iterator[Case]:
    """The process is killed at any time."""
    nursery = Nursery()
    scenes = scenes_on_demand(root, elements=_LARGE, nursery=nursery)
    while True:
        scene = scenes(random.choice(("file", "folder")))
        after, earlier = random.uniform(0, 1.05 * scene.seconds), random.random() < 0.5
        scene.reset(earlier=earlier)
        killed = nursery.kill(scene.command("-q"), after)
        tried = f"{scene.shape}, {'killed' if killed else 'at its end'} after {after:.3f} s"
        yield Case(tried, [*scene.whole(earlier=earlier), *scene.aftermath()])


def resume(root: Path, random: Random) -> Iterator[Case]:
    """Runs under --resume are killed one after the other, until one ends; what they keep can be damaged in between."""
    nursery = Nursery()
    scenes = scenes_on_demand(root, elements=_LARGE, nursery=nursery)
    while True:
        scene = scenes(random.choice(("resumed file", "two resumed averages")))
        earlier, damages = random.random() < 0.5, random.random() < 0.3
        scene.reset(earlier=earlier)
        killed, problems = 0, []
        while killed < MOST_KILLS and nursery.kill(scene.command("-q"), random.uniform(0, 1.05) * scene.seconds):
            killed += 1
            problems += scene.whole(earlier=earlier)
            if damages:
                _damage(scene, random)
        problems += [*_after_resuming(scene, damaged=damages), *scene.aftermath()]
        yield Case(f"{scene.shape}, killed {killed} times{', damaged' if damages else ''}", problems)


def _after_resuming(scene: Scene, *, damaged: bool) -> list[str]:
    """Return the problems of a resumed run that is not killed: it must use every complete tensor."""
    complete = _complete_tensors(scene)
    ended = scene.run(loud=True)
    resumed = [
        json.loads(path.read_text())["summary"]["resumed_tensors"] for path in scene.out.glob("ema*.report.json")
    ]
    return wrong(
        {
            f"ended with {ended.status}: {ended.stderr}": ended.status != 0,
            "the output is not that of an uninterrupted run": scene.outputs() != scene.new,
            f"{complete} tensors were complete, and {resumed} were used: {ended.stderr}": not damaged
            and not _up_to_date(ended)
            and set(resumed) != {complete},
            f"does not report that it continues: {ended.stderr}": any(resumed)
            and not _up_to_date(ended)
            and "continuing the interrupted run" not in ended.stderr,
            f"left {scene.leftovers()}": bool(scene.leftovers()),
        }
    )


def _up_to_date(ended: Ended) -> bool:
    return "up to date" in ended.stdout


def _complete_tensors(scene: Scene) -> int:
    """Count the complete lines of the journal after the first, which names the run; 0 if a partial output is gone.

    A run that is killed after an output got its name, and before the journal is removed, leaves nothing to continue.
    """
    outputs = scene.outputs()
    gone = [name for name in scene.new if not (scene.out / f".{name}.resume.partial").exists()]
    if gone and all(outputs.get(name) == scene.new[name] for name in gone):
        return 0
    journals = list(scene.out.glob(".*.journal"))
    lines = journals[0].read_bytes().splitlines(keepends=True) if journals else []
    complete = 0
    for line in lines:
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
            break
        complete += 1
    return max(0, complete - 1)


def _damage(scene: Scene, random: Random) -> None:
    """Truncate one of the files that were kept, or change a byte of it."""
    kept = [path for path in sorted(scene.out.glob(".*")) if path.is_file() and path.stat().st_size]
    if not kept:
        return
    path = random.choice(kept)
    data = bytearray(path.read_bytes())
    position = random.randrange(len(data))
    data[position] ^= 1 << random.randrange(8)
    path.write_bytes(data[:position] if random.random() < 0.3 else data)


def signals(root: Path, random: Random) -> Iterator[Case]:
    """One signal, two, or many in a row arrive at any time."""
    scenes = scenes_on_demand(root, elements=_LARGE, nursery=Nursery())
    seconds = cache(lambda shape: _seconds_with_start(scenes(shape)))
    while True:
        scene = scenes(random.choice(("file", "folder", "resumed file")))
        number = random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        times, after = random.choice((1, 2, STORM)), random.uniform(0.1, 1) * seconds(scene.shape)
        scene.reset()
        process = scene.start()
        time.sleep(after)
        sent = time.monotonic()
        for _ in range(times):
            process.send_signal(number)
        problems = _after_signal(scene, process, number)
        took = time.monotonic() - sent
        tried = f"{scene.shape}, {times} x {number.name} after {after:.3f} s"
        yield Case(tried, [*problems, *scene.aftermath()], took)


def _seconds_with_start(scene: Scene) -> float:
    """Return how long a run takes that is not forked: signals also arrive while it imports the program."""
    scene.reset()
    started = time.monotonic()
    scene.start().communicate()
    return time.monotonic() - started


def _after_signal(scene: Scene, process: subprocess.Popen[str], number: int) -> list[str]:
    """Return the problems after a signal, which may come too late, or while Python itself starts or ends."""
    try:
        _, stderr = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return [f"did not end within {END_SECONDS} s"]
    status = process.returncode
    expected = scene.new if status == 0 else scene.old
    kept = scene.shape == "resumed file" and status != 0
    checks = {
        f"ended with {status}: {stderr}": status not in (0, 128 + number, -number),
        "the output is not the expected one": scene.outputs() not in (expected, scene.new),
        f"left {scene.leftovers()}": bool(scene.leftovers()) and not kept,
    }
    return wrong(checks)


def writers(root: Path, _: Random) -> Iterator[Case]:
    """Eight runs write one output together."""
    scene = Scene(root / "file", nursery=Nursery())
    while True:
        scene.reset(earlier=False)
        together = [scene.start() for _ in range(8)]
        messages = [process.communicate()[1] for process in together]
        statuses = [process.returncode for process in together]
        checks = {
            f"ended with {statuses}: {messages}": not set(statuses) <= {0, 6} or 0 not in statuses,
            "the output is not that of a single run": scene.outputs() != scene.new,
            f"left {scene.leftovers()}": bool(scene.leftovers()),
        }
        yield Case("8 runs", [*wrong(checks), *scene.aftermath()])
