"""What an average is written to: a file, or a folder of them. Which one is decided here."""

from __future__ import annotations

from typing import Protocol

from ema_cli.fold.state import Sink
from ema_cli.records.files import Written
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import STREAMED, Location
from ema_cli.storage.url import Url
from ema_cli.write.file import OutputFile
from ema_cli.write.folder import OutputFolder
from ema_cli.write.publish import SmallFile
from ema_cli.write.resumable_file import ResumableFile


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


class Small(Protocol):
    """A small file that is written whole, and gets its name later.

    Every method but ``discard`` raises ``OutputError`` for what the system says on the way.
    """

    def write(self, data: bytes) -> None:
        """Take what stands in it. Arrange for ``discard`` before."""

    def publish(self) -> None:
        """Give it its name."""

    def discard(self) -> None:
        """Remove what was written; nothing happens after ``publish``."""


def make_small(place: Location) -> Small:
    """Return what a small file is written to."""
    if isinstance(place, Url):
        from ema_cli.write.uploads import SmallObject  # noqa: PLC0415 - fsspec

        return SmallObject(place)
    return SmallFile(place)


def make_target(output: PlannedOutput) -> Target:
    """Return what an output is written to."""
    if isinstance(output.path, Url):
        from ema_cli.write.remote_folder import RemoteFolder, make_upload  # noqa: PLC0415 - fsspec

        return RemoteFolder(output, output.path) if output.folder else make_upload(output.path, output.files[0])
    if output.folder:
        return OutputFolder(output)
    (file,) = output.files
    return OutputFile(output.path, file.header, file.data_bytes)


def is_spooled(output: PlannedOutput) -> bool:
    """Whether an output is put together on the disk before it is sent to its store."""
    return isinstance(output.path, Url) and output.path.scheme not in STREAMED


def make_resumable(output: PlannedOutput) -> ResumableFile:
    """Return a file that an output is written to, and that stays when the run is interrupted."""
    (file,) = output.files
    return ResumableFile(output.local, file.header, file.data_bytes)
