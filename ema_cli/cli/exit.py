"""Exit codes, and which error ends in which. Codes are only ever added."""

from __future__ import annotations

from enum import IntEnum

from ema_cli import errors


class ExitCode(IntEnum):
    """What the exit status of a run means."""

    OK = 0
    """Written, or already up to date; equal; verified."""
    DIFFERENT = 1
    """``diff``: the checkpoints differ."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    INPUT_REFUSED = 3
    """An input is malformed, unsafe, mismatched or not finite."""
    INPUT_CHANGED = 4
    """An input changed or vanished while it was being read."""
    OUTPUT = 5
    """The output cannot be written: it exists, no space, no permission, an I/O error."""
    LOCKED = 6
    """Another run is writing the same output."""
    NOTHING_MATCHED = 7
    """No checkpoint matched, or a named one is missing."""
    STRICT = 8
    """Warnings under ``--strict``."""
    VERIFICATION = 10
    """``verify``: the output, its report and its inputs do not belong together any more."""
    BUG = 70
    """A bug in ema-avg."""
    SIGNAL = 128
    """Plus the number of the signal that ended the run."""


_BY_ERROR: dict[type[errors.EmaAvgError], ExitCode] = {
    errors.UsageError: ExitCode.USAGE,
    errors.InputRefused: ExitCode.INPUT_REFUSED,
    errors.InputChanged: ExitCode.INPUT_CHANGED,
    errors.OutputError: ExitCode.OUTPUT,
    errors.OutputLocked: ExitCode.LOCKED,
    errors.NothingMatched: ExitCode.NOTHING_MATCHED,
    errors.NothingNew: ExitCode.NOTHING_MATCHED,
    errors.StrictWarnings: ExitCode.STRICT,
    errors.VerificationFailed: ExitCode.VERIFICATION,
}


def exit_code(error: errors.EmaAvgError) -> ExitCode:
    """Return the exit code of an error."""
    return _BY_ERROR[type(error)]
