"""The methods that all targets have: files and folders, on a disk or in a store, that outputs are written to."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ema_cli.records.files import Written


class Target(Protocol):
    """Takes the data section of one output in any order; the output gets its name when it is complete.

    Every method but ``discard`` raises ``OutputError`` if the system or the store refuses something: there is no space,
    no permission, an I/O error. ``finish`` raises it if bytes are missing or read back differently, and
    ``InputChanged`` if a side file to copy was changed or removed; ``publish``, if another program interfered.
    """

    def open(self) -> None:
        """Reserve the space. Arrange for ``discard`` first: a signal may come at any time."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section. Called from several threads."""

    def finish(self) -> Written:
        """Make everything durable and verify it, still under another name; describe the files."""

    def publish(self) -> None:
        """Give the output its name."""

    def discard(self) -> None:
        """Remove what was written, in any state; does nothing after ``publish``."""


@runtime_checkable
class StoppableTarget(Protocol):
    """A target that may wait for a store."""

    def stop(self) -> None:
        """Raise in every thread that waits in ``write``; the run ends. Does nothing after the last ``write``."""


class SmallTarget(Protocol):
    """Takes a small file that is written whole and gets its name later.

    Every method but ``discard`` raises ``OutputError`` when the system or the store refuses something.
    """

    def write(self, *pieces: bytes) -> None:
        """Take the contents, which may be in pieces. Arrange for ``discard`` first."""

    def publish(self) -> None:
        """Give the file its name."""

    def keep(self) -> None:
        """Let ``discard`` leave what is on a disk under its hidden name, where the next run finds it."""

    def discard(self) -> None:
        """Remove what was written; does nothing after ``publish``."""
