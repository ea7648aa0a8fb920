"""The errors that users can meet, and warnings.

    EmaAvgError
    |-- UsageError        the command line or the options contradict themselves
    |-- NothingMatched    no checkpoint matched, or a named one is missing
    |   `-- NothingNew    the previous average already contains all of them
    |-- InputRefused      malformed, unsafe, mismatched or non-finite input
    |-- InputChanged      an input changed or vanished while it was read
    |-- OutputError       the output cannot be written
    |-- OutputLocked      another run is writing the same output
    |-- StrictWarnings    a warning under ``--strict``
    |-- VerificationFailed  an output does not match its report, or can no longer be recomputed
    `-- SystemExhausted   the system is out of memory, threads or descriptors

Each message states the problem, with the offending value and path, then the cause; the hint is what to do next.
Exit codes belong to the command line and are assigned there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ema_cli.record import record
from ema_cli.text import without_secrets

WARNING_CODES = (
    *("first-dominates", "unobserved-mass", "window-not-filled", "window-too-short", "plain-mean", "one-checkpoint"),
    *("steps-incomplete", "steps-contradict", "order-disagrees", "order-doubtful", "order-against-steps"),
    "runs-mixed",
    "output-changed",
    *("same-weights", "averages-averaged", "unusable-left-out", "input-replaced", "weights-chosen", "weights-dropped"),
    *("evidence-unrelated", "evidence-outlier", "evidence-order", "evidence-copies"),
    *(
        "pattern-unused",
        "batchnorm-averaged",
        "dtypes-differ",
        "float8-averaged",
        "missing-copied",
        "missing-left-out",
        "tied-kept",
    ),
    *("nothing-averaged", "nonfinite-written", "integers-differ"),
    *("lora-factors", "lora-scale-not-stored", "lora-configs-differ"),
    *("data-ended", "layers-unreached", "statistics-kept"),
    *("late-left-out", "again-touched", "continued-from-rounded"),
    *("no-locks", "companion-left-out", "config-not-updated", "master-weights-kept"),
    *("up-to-date", "output-in-the-way", "no-device"),
    *("not-a-folder", "not-a-run", "runs-in-runs", "folder-unreadable"),
    "config-ignored",
)
"""The code of every warning, in the order of the help topic ``warnings``."""


@record
class Proposal:
    """The command of the user with other inputs or options. A message shows it only if it could be planned."""

    reason: str
    """Why it should work, in words that a command can follow: ``the folders inside contain checkpoints``."""
    changes: Mapping[str, Any]
    """The fields of the options that differ, with their values."""
    runs: tuple[str, ...] = ()
    """Folders that ``ema-avg batch`` averages one by one, instead of the paths."""


class EmaAvgError(Exception):
    """An expected failure: one sentence and, where there is one, a hint; without secrets.

    The first of the ``proposals`` that can be planned replaces the hint. A hint that takes time to find is a function:
    it is called when the hint is shown, as many errors never are.
    """

    def __init__(self, message: str, *, hint: str | Callable[[], str] = "", proposals: Sequence[Proposal] = ()) -> None:
        self.message = without_secrets(message)
        self._hint = hint
        super().__init__(self.message)
        self.proposals = tuple(proposals)

    @property
    def hint(self) -> str:
        """What to do next; empty if that is not known."""
        if callable(self._hint):
            self._hint = self._hint()
        return without_secrets(self._hint)

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint = hint


class UsageError(EmaAvgError):
    """The options contradict themselves or lack something."""


class NothingMatched(EmaAvgError):  # noqa: N818 - named after what happened, like the others
    """No checkpoint matched, or a named one is missing."""


class NothingNew(NothingMatched):
    """The previous average already contains every checkpoint."""


class InputRefused(EmaAvgError):  # noqa: N818
    """An input is malformed, unsafe, incompatible with the others, or not finite."""


class InputChanged(EmaAvgError):  # noqa: N818
    """An input changed, ended early or became unreadable while it was being read."""


class OutputError(EmaAvgError):
    """The output cannot be written: it exists, or there is no space, no permission, an I/O error."""


class OutputLocked(EmaAvgError):  # noqa: N818
    """Another run holds the lock of the same output."""


class StrictWarnings(EmaAvgError):  # noqa: N818
    """There were warnings, and ``--strict`` makes that a failure."""


class VerificationFailed(EmaAvgError):  # noqa: N818
    """An output does not match its report, or its inputs are gone or changed."""


class SystemExhausted(EmaAvgError):  # noqa: N818
    """The system is out of memory, threads or descriptors, or a library cannot be loaded."""


class EmaAvgWarning(UserWarning):
    """A warning as the Python functions issue it: its text begins with its code, so that filters can name it.

    warnings.filterwarnings("ignore", "batchnorm-averaged", ema_cli.EmaAvgWarning)
    """

    @property
    def code(self) -> str:
        """One of ``WARNING_CODES``."""
        return str(self).partition(":")[0]


@record
class RunWarning:
    """A warning: a stable code, a sentence and, where there is one, a hint; without secrets."""

    code: str
    """One of ``WARNING_CODES``."""
    message: str
    hint: str = ""
    allowed: bool = False
    """The user accepted it (``--allow``), so it does not fail a run under ``--strict``."""

    def __post_init__(self) -> None:
        """Remove secrets, whoever wrote the text."""
        object.__setattr__(self, "message", without_secrets(self.message))
        object.__setattr__(self, "hint", without_secrets(self.hint))

    @property
    def label(self) -> str:
        """The code for people, who also see that it is allowed."""
        return f"{self.code}, allowed" if self.allowed else self.code
