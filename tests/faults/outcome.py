"""What a run may come to where the system refuses something: all of it, or an error in one line and nothing changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tests.faults.case import wrong
from tests.faults.runs import Ended
from tests.faults.scene import Scene

OUTPUT = 5
RESOURCES = 71


def after_refusal(
    scene: Scene, ended: Ended, reasons: Sequence[str], *, statuses: Collection[int] = (OUTPUT,), earlier: bool = True
) -> list[str]:
    """Say what is wrong with a run that may have been refused something.

    Args:
        scene: of the run.
        ended: how it ended.
        reasons: of which one must be told.
        statuses: with which it may end, besides 0.
        earlier: whether there was an output before.

    """
    # What a run under --resume has completed is kept for one that gets more.
    kept = "resumed" in scene.shape and ended.status == RESOURCES
    untouched = scene.outputs() == (scene.old if earlier else {}) if kept else scene.untouched(earlier=earlier)
    return [
        *wrong(
            {
                f"ended with {ended.status}: {ended.stderr}": ended.status not in (0, *statuses),
                "says that all is well, and the output is not the new one": ended.status == 0
                and scene.outputs() != scene.new,
                "failed, and what was there is not there any more": ended.status != 0 and not untouched,
                f"left {scene.leftovers()}": bool(scene.leftovers()) and not kept,
                "a traceback": "Traceback" in ended.stderr,
            }
        ),
        *(badly_told(scene, ended, reasons) if ended.status else []),
    ]


def badly_told(scene: Scene, ended: Ended, reasons: Sequence[str]) -> list[str]:
    """Say what is wrong with the message of a run that failed: one line has the reason, and for exit 5 the path."""
    placed = ended.status != OUTPUT or str(scene.out) in ended.stderr
    told = is_told(ended, reasons) and placed
    return [] if told else [f"does not tell the path and the reason in one line: {ended.stderr}"]


def is_told(ended: Ended, reasons: Sequence[str]) -> bool:
    """Whether there is one line with the error, and one of the reasons in it."""
    facts = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    return len(facts) == 1 and any(reason in facts[0] for reason in reasons) and "Traceback" not in ended.stderr
