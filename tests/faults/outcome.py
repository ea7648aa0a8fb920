"""How a run may end if the system refuses something: it succeeds, or prints one error and changes nothing."""

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
    """Return the problems of a run that the system may have refused something.

    Args:
        scene: of the run.
        ended: how it ended.
        reasons: the error must have at least one.
        statuses: exit statuses that are allowed in addition to 0.
        earlier: whether there was an output before.

    """
    # A run with --resume keeps its complete tensors for a later run that has more resources.
    kept = "resumed" in scene.shape and ended.status == RESOURCES
    untouched = scene.outputs() == (scene.old if earlier else {}) if kept else scene.untouched(earlier=earlier)
    return [
        *wrong(
            {
                f"ended with {ended.status}: {ended.stderr}": ended.status not in (0, *statuses),
                "reports success, but the output is not the new one": ended.status == 0
                and scene.outputs() != scene.new,
                "failed, and the existing output was changed": ended.status != 0 and not untouched,
                f"left {scene.leftovers()}": bool(scene.leftovers()) and not kept,
                "a traceback": "Traceback" in ended.stderr,
            }
        ),
        *(unclear_error(scene, ended, reasons) if ended.status else []),
    ]


def unclear_error(scene: Scene, ended: Ended, reasons: Sequence[str]) -> list[str]:
    """Return the problems of an error message: one line must have the reason, and for exit 5 the path."""
    has_path = ended.status != OUTPUT or str(scene.out) in ended.stderr
    clear = has_reason(ended, reasons) and has_path
    return [] if clear else [f"does not state the path and the reason in one line: {ended.stderr}"]


def has_reason(ended: Ended, reasons: Sequence[str]) -> bool:
    """Return whether there is one error line, with one of the reasons in it."""
    facts = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    return len(facts) == 1 and any(reason in facts[0] for reason in reasons) and "Traceback" not in ended.stderr
