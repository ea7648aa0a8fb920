"""The files of an output, planned and written: one file, or several in a folder."""

from __future__ import annotations

import math
from enum import StrEnum

from ema_cli.errors import RunWarning
from ema_cli.record import record
from ema_cli.storage.digest import digest_of_all
from ema_cli.storage.locations import Location
from ema_cli.storage.source import ByteSource


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
class Checksum:
    """A CRC-32 that a file has of some of its own bytes, as a zip archive has of its records."""

    begin: int
    """First byte of the range."""
    nbytes: int
    fields: tuple[int, ...]
    """Where the file holds the CRC-32, as four bytes, lowest first."""


@record
class PlacedFile:
    """A file in which tensors have given places; everything else in it is copied, or given."""

    name: str
    """In an output folder, the path from there, with ``/``."""
    nbytes: int
    source: ByteSource | None = None
    """The open file of the last checkpoint that it is a copy of; ``None`` if all its other bytes are ``given``."""
    given: tuple[tuple[int, bytes], ...] = ()
    """All bytes outside the tensors of a file without a source, and where they begin, in order."""
    checksums: tuple[Checksum, ...] = ()
    """To be set when their ranges are complete. The bytes of their fields need not be given."""
    holds_tensors: bool = True
    """Whether it is one of the files of the weights; others are side files."""


@record
class Place:
    """Where a tensor of the output, or a rectangle of it, is written."""

    file: int
    """Number of the file in the ``Placement``."""
    offset: int
    """Byte of the file where the first element is."""
    origin: tuple[int, ...]
    """Index in the tensor of the rectangle's first element; zeros if it is the whole tensor."""
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """As in ``TensorLayout``."""


@record
class PlacedTensor:
    """A tensor of the data section, and where it is written."""

    begin: int
    """Byte of the data section where it begins."""
    shape: tuple[int, ...]
    itemsize: int
    places: tuple[Place, ...]
    """One, or one for each of its rectangles; none if its bytes are there already."""

    @property
    def nbytes(self) -> int:
        """Bytes in the data section."""
        return math.prod(self.shape) * self.itemsize


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
class Placement:
    """The files of an output that is no safetensors file, and where its tensors are in them."""

    files: tuple[PlacedFile, ...]
    """In the order of their names; a single file if the output is no folder."""
    tensors: tuple[PlacedTensor, ...]
    """Every planned tensor, in the order of the data section."""
    folder: bool = False
    beside: tuple[SideFile, ...] = ()
    """Files of the folder that are copied whole."""
    empty_folders: tuple[str, ...] = ()
    """Folders inside the folder that have no file."""
    warnings: tuple[RunWarning, ...] = ()
    """What its trainer will do with it that may be unexpected."""


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
