"""The files of an output, planned and written: one file, or several in a folder."""

from __future__ import annotations

from enum import StrEnum

from ema_cli.record import record
from ema_cli.storage.digest import digest_of_all
from ema_cli.storage.locations import Location


class FileRole(StrEnum):
    """The role of a file in an output."""

    WEIGHTS = "weights"
    INDEX = "index"
    """Maps each tensor to its file."""
    SIDE_FILE = "companion"
    """Configuration, tokenizer and the like, copied from the last checkpoint."""


@record
class PlannedFile:
    """A safetensors file: its own header, then a part of the output's data section."""

    name: str
    header: bytes
    begin: int
    """Where its part begins in the output's data section, in bytes."""
    data_bytes: int

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.data_bytes


@record
class SideFile:
    """A file beside the weights in a folder."""

    name: str
    role: FileRole
    nbytes: int
    content: bytes | None = None
    """Its content; ``None`` if it is copied from ``source``."""
    source: Location | None = None
    """The file that it is a copy of."""
    state: object = None
    """State of ``source`` when the copy was planned: if it changes, the copy is refused."""


@record
class WrittenFile:
    """A file that was written and read back."""

    name: str
    role: FileRole
    nbytes: int
    sha256: str
    modified_ns: int
    """Time of the last modification, in nanoseconds."""


@record
class Written:
    """The written files of an output."""

    files: tuple[WrittenFile, ...]
    folder: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the weights: that of a single file, else that of the ``sha256sum`` lines of weights and index."""
        return digest_of_all({file.name: file.sha256 for file in self.files if file.role is not FileRole.SIDE_FILE})

    @property
    def modified_ns(self) -> int:
        """Time of the last modification of the weights, in nanoseconds."""
        return max(file.modified_ns for file in self.files if file.role is FileRole.WEIGHTS)


def is_weights(name: str) -> bool:
    """Whether a file of an output folder is part of the weights, by its name: tensors or their index."""
    return name.endswith((".safetensors", ".safetensors.index.json"))
