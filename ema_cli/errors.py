"""The errors a user can meet, and nothing else.

    EmaAvgError
    |-- UsageError        the command line or the options contradict themselves
    |-- NothingMatched    no checkpoint matched, or a named one is missing
    |   `-- NothingNew    all of them are in the average that is gone on from
    |-- InputRefused      malformed, unsafe, mismatched or non-finite input
    |-- InputChanged      an input changed or vanished while it was read
    |-- OutputError       the output cannot be written
    |-- OutputLocked      another run is writing the same output
    |-- StrictWarnings    a warning under ``--strict``
    |-- VerificationFailed  an output is not what its report says, or cannot be recomputed any more
    `-- SystemExhausted   the system gives no more memory, threads or descriptors

Each message states the fact with the offending value and place, then the cause; the hint is what to do next.
Exit codes belong to the command line and are assigned there.
"""

from __future__ import annotations

from dataclasses import dataclass


class EmaAvgError(Exception):
    """An expected failure, told in one sentence and, where one exists, with the next step."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EmaAvgError):
    """The options contradict themselves or lack something."""


class NothingMatched(EmaAvgError):  # noqa: N818 - the name says what happened, as the others do
    """No checkpoint matched, or one that was named is missing."""


class NothingNew(NothingMatched):
    """Every checkpoint is inside the earlier average already."""


class InputRefused(EmaAvgError):  # noqa: N818
    """An input is malformed, unsafe, incompatible with the others, or not finite."""


class InputChanged(EmaAvgError):  # noqa: N818
    """An input changed, ended early or could not be read any more while it was being read."""


class OutputError(EmaAvgError):
    """The output cannot be written: it exists, or there is no space, no permission, an I/O error."""


class OutputLocked(EmaAvgError):  # noqa: N818
    """Another run holds the lock of the same output."""


class StrictWarnings(EmaAvgError):  # noqa: N818
    """The run warned, and ``--strict`` makes that a failure."""


class VerificationFailed(EmaAvgError):  # noqa: N818
    """An output is not what its report says, or its inputs are not there any more as they were."""


class SystemExhausted(EmaAvgError):  # noqa: N818
    """The system gives no more memory, threads or descriptors, or a library cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWarning:
    """A warning: a stable code, a sentence, and the way out."""

    code: str
    message: str
    hint: str = ""
