"""Parts that make one system call fail, or kill the process at it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from random import Random

from tests.faults.agreement import disagreements, unverified
from tests.faults.case import Case, wrong
from tests.faults.forms import FORMS
from tests.faults.nursery import Nursery
from tests.faults.outcome import OUTPUT, RESOURCES
from tests.faults.runs import Ended
from tests.faults.scene import SHAPES, Scene
from tests.faults.shim import EOF, KILL, SHORT, Fault, Shim

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_RENAMES = (errno.EXDEV, errno.EPERM, errno.EBUSY, errno.EACCES)
CALLS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("open", "fsync", "fdatasync", "close", "unlink", "mkdir", "rmdir", "read"), CODES),
    **dict.fromkeys(("write", "pwrite"), (*CODES, SHORT, errno.EINTR)),
    "pread": (*CODES, SHORT, EOF, errno.EINTR, errno.EAGAIN),
    "ftruncate": (*CODES, errno.EPERM),
    "fallocate": (*CODES, errno.EINVAL, errno.EOPNOTSUPP),
    "rename": (*CODES, *_RENAMES),
    "exchange": (*CODES, *_RENAMES, errno.EINVAL, errno.ENOSYS),
    "link": (*CODES, *_RENAMES, errno.EMLINK, errno.EOPNOTSUPP),
    "chmod": (errno.EIO, errno.EPERM, errno.EROFS),
    **dict.fromkeys(("stat", "statvfs", "opendir", "readdir"), (errno.EIO, errno.EACCES)),
    "access": (errno.EACCES,),
    "flock": (errno.EIO, errno.ENOLCK),
    "mmap": (errno.ENODEV, errno.ENOMEM),
    **dict.fromkeys(("fadvise", "probe", "closedir"), (errno.EIO, errno.EINVAL)),
}
"""Each with the errors that it may fail with."""
BEFORE_PUBLISHING = ("pwrite", "ftruncate", "fallocate", "fdatasync", "pread")
"""Calls that are never made after the first rename."""
HARMLESS = ("close", "closedir", "fadvise", "probe")
"""Calls whose failures lose nothing."""
READ_CODES = (SHORT, EOF, errno.EINTR, errno.EIO, errno.EAGAIN)
READ_SCENES = (*((form, "file") for form in FORMS), ("shards", "folder"))


def errors(root: Path, random: Random) -> Iterator[Case]:
    """Every call on the output, its lock, its report and their folder fails once, with every error."""
    shim = Shim(root)
    scenes = _scenes(root, Nursery(shim))
    faults = [(shape, call, code) for shape in SHAPES for call, codes in CALLS.items() for code in codes]
    random.shuffle(faults)
    for shape, call, code in faults:
        scene = scenes("safetensors", shape)
        for number in count(1):
            scene.reset()
            unreserved = call == "ftruncate"  # then the size is set instead
            fault = Fault(call=call, number=number, code=code, folder=scene.out, no_reserve=unreserved)
            ended = scene.run(shim.environment(fault))
            hit = shim.hit()
            if not hit:
                break
            problems = [*_after_error(scene, call, code, hit, ended), *scene.aftermath()]
            yield Case(f"{scene.shape}, {fault}, {_steady(hit)}", problems)


def _after_error(scene: Scene, call: str, code: int, hit: str, ended: Ended) -> list[str]:
    """Return the problems after a call failed: calls that are not needed may fail unnoticed, others end in exit 5."""
    facts = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    # The safetensors library reports every failure to open a file as a missing file.
    reasons = [os.strerror(code) if code > 0 else "the file ends at byte"]
    reasons += ["No such file or directory"] if call == "open" and ".safetensors" in hit else []
    clear = len(facts) == 1 and str(scene.out) in facts[0] and any(reason in facts[0] for reason in reasons)
    # Files that cannot be removed after the output got its name are removed by the next run; and a lock that could not
    # be taken may belong to another run.
    may_leave = ended.status == 0 or call in ("unlink", "rmdir", "flock")
    may_leave = may_leave or (ended.status == RESOURCES and "resumed" in scene.shape)  # kept for a later run
    # Only its report identifies a new folder, so a report that cannot get its name is left for the next run.
    is_kept = ended.status == OUTPUT and call == "rename" and ".report.json." in hit and not scene.output.suffix
    needless = call in HARMLESS or code in (SHORT, errno.EINTR)
    allowed = {0} if needless else {0, OUTPUT, RESOURCES} if code == errno.ENOMEM else {0, 5}
    checks = {
        f"ended with {ended.status}: {ended.stderr}": ended.status not in allowed,
        f"does not state the path and the error in one line: {ended.stderr}": ended.status == 5 and not clear,
        "reports success, but the output is not the new one": ended.status == 0 and scene.outputs() != scene.new,
        "failed before anything was published, and the old output is gone": ended.status == 5
        and call in BEFORE_PUBLISHING
        and scene.outputs() != scene.old,
        f"left {scene.leftovers()}": scene.leftovers() != [Path(hit).name] * is_kept and not may_leave,
    }
    stated = disagreements(scene, ended) if ended.status else unverified(scene, earlier=True)
    return [*wrong(checks), *scene.whole(earlier=True), *stated]


def kills(root: Path, random: Random) -> Iterator[Case]:
    """The process is killed at each call on the output, its lock, its report and their folder."""
    shim = Shim(root)
    scenes = _scenes(root, Nursery(shim))
    points = [(shape, call, earlier) for shape in SHAPES for call in CALLS for earlier in (True, False)]
    random.shuffle(points)
    for shape, call, earlier in points:
        scene = scenes("safetensors", shape)
        for number in count(1):
            scene.reset(earlier=earlier)
            fault = Fault(call=call, number=number, code=KILL, folder=scene.out)
            ended = scene.run(shim.environment(fault))
            if not shim.hit():
                break
            wrong_end = [] if ended.status == -signal.SIGKILL else [f"ended with {ended.status}"]
            stated = unverified(scene, earlier=earlier)
            problems = [*wrong_end, *scene.whole(earlier=earlier), *stated, *scene.aftermath()]
            yield Case(f"{scene.shape}, {fault}, {_steady(shim.hit())}", problems)


def reads(root: Path, random: Random) -> Iterator[Case]:
    """Every call on an input, of every format, fails, is interrupted, or returns half of the bytes, or none."""
    shim = Shim(root)
    scenes = _scenes(root, Nursery(shim))
    calls = [(call, code) for call in ("read", "pread") for code in READ_CODES]
    calls += [(call, code) for call in ("open", "close") for code in READ_CODES if code > 0]  # these return no bytes
    calls += [("stat", errno.EIO), ("opendir", errno.EIO), ("readdir", errno.EIO)]
    calls += [(call, errno.EIO) for call in HARMLESS if call != "close"]
    faults = [(form, shape, call, code) for form, shape in READ_SCENES for call, code in calls]
    random.shuffle(faults)
    for form, shape, call, code in faults:
        scene = scenes(form, shape)
        for number in count(1):
            scene.reset()
            fault = Fault(call=call, number=number, code=code, folder=scene.inputs)
            ended = scene.run(shim.environment(fault))
            if not shim.hit():
                break
            problems = [*_after_read(scene, fault, Path(shim.hit()), ended), *scene.aftermath()]
            yield Case(f"{form} to {shape}, {fault}, {_steady(shim.hit())}", problems)


def _after_read(scene: Scene, fault: Fault, hit: Path, ended: Ended) -> list[str]:
    """Return the problems after a read failed or was short: it is harmless, or the run ends and names the file."""
    harmless = fault.code in (SHORT, errno.EINTR) or fault.call in HARMLESS
    looked = fault.call == "stat"  # if it fails, the file is opened anyway, or its folder cannot be listed
    allowed = {0} if harmless else {0, 3, 4} if looked else {3, 4}
    path = hit.parent if looked and hit.parent != scene.inputs else hit
    named = any(str(path.relative_to(scene.inputs)) in line for line in ended.stderr.splitlines())
    return wrong(
        {
            f"ended with {ended.status}: {ended.stderr}": ended.status not in allowed,
            f"does not name the file: {ended.stderr}": ended.status != 0 and not named,
            "wrote a wrong output": ended.status == 0 and scene.outputs() != scene.new,
            "changed the old output": ended.status != 0 and not scene.untouched(),
            f"left {scene.leftovers()}": bool(scene.leftovers()),
        }
    )


def _scenes(root: Path, nursery: Nursery) -> Callable[[str, str], Scene]:
    """Return a function that makes the scene of a form and a shape on its first call."""
    return cache(lambda form, shape: Scene(root / f"{form} {shape}", shape, form=form, nursery=nursery))


def _steady(path: str) -> str:
    """Return the name of a file without its random part."""
    parts = Path(path).name.split(".")
    return ".".join("*" if len(part) == 12 and set(part) <= set("0123456789abcdef") else part for part in parts)
