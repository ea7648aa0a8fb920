"""What an average is written to: a file, or a folder of them. Which one is decided here."""

from __future__ import annotations

from typing import Protocol

from ema_cli.files import Written
from ema_cli.fold.state import Sink
from ema_cli.records import PlannedOutput
from ema_cli.storage.locations import Url
from ema_cli.write.folder import OutputFolder
from ema_cli.write.output import OutputFile
from ema_cli.write.resumable import ResumableFile


class Target(Sink, Protocol):
    """Takes the data section of one output in any order, and appears under its name when it is whole.

    Every method but ``discard`` raises ``OutputError`` for what the system says on the way.
    """

    def open(self) -> None:
        """Reserve the space. Arrange for ``discard`` before: a signal may come at any time."""

    def finish(self) -> Written:
        """Make all durable and check what was stored, still under another name; return what it is."""

    def publish(self) -> None:
        """Give it its name."""

    def discard(self) -> None:
        """Remove what was written, whatever state it is in; nothing happens after ``publish``."""


def make_target(output: PlannedOutput) -> Target:
    """Return what an output is written to."""
    if output.folder:
        return OutputFolder(output)
    (file,) = output.files
    if isinstance(output.path, Url):
        from ema_cli.write.remote import RemoteObject  # noqa: PLC0415 - fsspec

        return RemoteObject(output.path, file)
    return OutputFile(output.path, file.header, file.data_bytes)


def make_resumable(output: PlannedOutput) -> ResumableFile:
    """Return a file that an output is written to, and that stays when the run is interrupted."""
    (file,) = output.files
    return ResumableFile(output.local, file.header, file.data_bytes)
