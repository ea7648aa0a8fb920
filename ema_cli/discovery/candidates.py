"""The records of what a folder may contain: possible checkpoints, and the folders that they are in."""

from __future__ import annotations

from ema_cli.errors import RunWarning
from ema_cli.formats.file_names import is_numbered
from ema_cli.formats.series_names import has_number
from ema_cli.record import record
from ema_cli.records.series import Skipped
from ema_cli.storage.locations import Location


@record
class Candidate:
    """A file or a folder that may be a checkpoint."""

    path: Location
    in_folder: bool
    """Found in a folder, not named."""
    named: Location | None = None
    """The file or folder that was named, or that a named pattern matches: this one, or a folder that it is in."""
    run: Location | None = None
    """That folder."""
    name: str = ""
    """In that folder: of the file itself, or of the folder that holds it."""
    beside: bool = False
    """It has no place in the numbered series of the folder by its name."""
    reason: str = ""
    """Why it is skipped, unless it is an output of this program."""


@record
class FolderListing:
    """The possible checkpoints in a folder."""

    whole: bool = False
    """The folder itself is a checkpoint."""
    members: tuple[str, ...] = ()
    """Names of the checkpoint folders in it: numbered, in natural order, then others such as ``final``."""
    candidates: tuple[Candidate, ...] = ()
    """The checkpoints of a run: these folders, and files."""
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[RunWarning, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint."""
        return not self.whole and not self.candidates

    @property
    def is_series(self) -> bool:
        """Whether there are several numbered checkpoints."""
        return sum(has_number(candidate.name) for candidate in self.candidates if not candidate.beside) > 1


@record
class InnerFolder:
    """A folder below another that has checkpoints."""

    location: Location
    listing: FolderListing

    @property
    def models(self) -> list[Location]:
        """The checkpoints in it that are not beside a series."""
        if self.listing.whole:
            return [self.location]
        return [candidate.path for candidate in self.listing.candidates if not candidate.beside]

    def is_parts(self, above: Location) -> bool:
        """Whether it has a series in a numbered folder below ``above``: the ranks or layers of one checkpoint.

        A folder with a name of digits alone may as well be a run.
        """
        below = self.location.parts[len(above.parts) :]
        return self.listing.is_series and any(is_numbered(name) and not name.isdecimal() for name in below)
