"""The publication of a run: all files get their names, one by one, and a failure says which are new and which are old.

No system gives several names at once. A file that could not get its name leaves those before it new and those after it
as they were; nothing is put back, because the same error would be likely to stop that, too. Old reports are not removed
either: whatever refuses a rename refuses a removal. ``ema-avg verify`` recognizes an output that is newer than its
report. A report that alone identifies a new output stays under its hidden name, and the next run publishes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.record import record
from ema_cli.storage.locations import Location
from ema_cli.text import quoted, shortlist
from ema_cli.write.publish import NotDurable
from ema_cli.write.target import SmallTarget, Target


@record
class Finished:
    """A file or folder that is complete and has no name yet."""

    path: Location
    target: Target | SmallTarget


@record
class IdentifyingReport(Finished):
    """The report of an output that nothing else shows to be of this program: a folder, or a file of another format."""

    target: SmallTarget
    output: Location


def publish_all(files: Sequence[Finished]) -> None:
    """Give finished files their names, in this order.

    Raises:
        OutputError: one of them cannot get its name; the message lists what is new and what is not, if anything is new.

    """
    for done, file in enumerate(files):
        try:
            file.target.publish()
        except OutputError as error:
            new = done + isinstance(error, NotDurable)
            if not new:
                raise
            _keep_reports(files[:new], files[new:])
            hint = f"{error.hint}; --force overwrites what is new" if error.hint else "run again with --force"
            raise OutputError(f"{error.message}; {_state(files[:new], files[new:])}", hint=hint) from error


def _keep_reports(new: Sequence[Finished], others: Sequence[Finished]) -> None:
    """Leave the reports without which the next run would not know a new output; it gives them their names."""
    outputs = {file.path for file in new}
    for file in others:
        if isinstance(file, IdentifyingReport) and file.output in outputs:
            file.target.keep()


def _state(new: Sequence[Finished], others: Sequence[Finished]) -> str:
    """Return which files are new, which are as they were before the run, and which do not exist."""
    remote = [file for file in others if not isinstance(file.path, Path)]
    old = [file for file in others if isinstance(file.path, Path) and os.path.lexists(file.path)]
    lists = {
        "new": new,
        "unchanged": old,
        "not written": [file for file in others if file not in old and file not in remote],
        "not sent": remote,
    }
    return "; ".join(f"{words}: {_names(listed)}" for words, listed in lists.items() if listed)


def _names(files: Sequence[Finished]) -> str:
    return shortlist([quoted(str(file.path)) for file in files], most=len(files))
