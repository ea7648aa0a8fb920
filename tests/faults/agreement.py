"""Judge of a run that published only some of its files: message, status and ``verify`` must agree with the files."""

from __future__ import annotations

import re
from pathlib import Path

from ema_cli.naming import report_name
from tests.faults.case import wrong
from tests.faults.runs import PROGRAM, Ended
from tests.faults.scene import Scene

_NEW = re.compile(r"; new: ((?:\"[^\"]*\"(?:, )?)+)")
_MISMATCH = 10


def disagreements(scene: Scene, ended: Ended, *, earlier: bool = True) -> list[str]:
    """Return the problems of a run that failed: the files that its message lists as new must be those that are."""
    new = scene.changed(earlier=earlier)
    listed = _NEW.search(ended.stderr)
    stated = {Path(name).name for name in re.findall('"([^"]*)"', listed[1])} if listed else set()
    checks = {f"states that {sorted(stated)} are new, and {sorted(new)} are: {ended.stderr}": stated != new}
    return [*wrong(checks), *unverified(scene, earlier=earlier)]


def unverified(scene: Scene, *, earlier: bool) -> list[str]:
    """Return the problems of ``verify``: it passes exactly the outputs whose reports were written by the same run."""
    new, problems = scene.changed(earlier=earlier), list[str]()
    for top in sorted({Path(name).parts[0] for name in scene.new}):
        if not (scene.out / top).exists() or top not in new:
            continue
        pair = report_name(top) in new
        ended = scene.ask([*PROGRAM, "verify", str(scene.out / top), "--output-only", "-q"])
        problems += wrong(
            {
                f"verify {top} ended with {ended.status}: {ended.stderr}": ended.status != (0 if pair else _MISMATCH),
                f"verify does not say why: {ended.stderr}": not pair
                and not re.search("is newer than its report|there is no|not a report|regular file", ended.stderr),
            }
        )
    return problems
