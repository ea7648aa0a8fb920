"""The files of an output: as they are planned, and as they were written. One, or several in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ema_cli.storage.digest import digest_of_all
from ema_cli.storage.locations import Location


class FileRole(StrEnum):
    """What a file is in an output."""

    WEIGHTS = "weights"
    INDEX = "index"
    """Says which file holds which tensor."""
    COMPANION = "companion"
    """Configuration, tokenizer and the like, carried over from the last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A safetensors file: a run of the output's data section behind a header of its own."""

    name: str
    header: bytes
    begin: int
    """The byte of the output's data section that its own begins with."""
    data_bytes: int

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.data_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file beside the weights in a folder."""

    name: str
    role: FileRole
    nbytes: int
    content: bytes | None = None
    """What stands in it; ``None`` where it is copied."""
    source: Location | None = None
    """What it is a copy of."""
    state: object = None
    """Of that, when it was planned: a copy is made of the same bytes only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file that was written, and read back."""

    name: str
    role: FileRole
    nbytes: int
    sha256: str
    modified_ns: int
    """Time of the last modification, in nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written of an output."""

    files: tuple[WrittenFile, ...]
    folder: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the weights: of one file its own, else that of what ``sha256sum`` prints for them and the index."""
        return digest_of_all({one.name: one.sha256 for one in self.files if one.role is not FileRole.COMPANION})

    @property
    def modified_ns(self) -> int:
        """Time of the last modification of the weights, in nanoseconds."""
        return max(one.modified_ns for one in self.files if one.role is FileRole.WEIGHTS)


def is_weights(name: str) -> bool:
    """Whether a file of an output folder is part of the weights, by its name: tensors, or the index of them."""
    return name.endswith((".safetensors", ".safetensors.index.json"))
