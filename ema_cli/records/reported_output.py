"""A written output as its report describes it: part of the report, and what recognizes an output without metadata."""

from __future__ import annotations

from pathlib import PurePosixPath

from ema_cli.record import record


@record
class File:
    """A file of an output folder."""

    name: str
    """In the folder; since 1.6 with ``/`` for a file in a folder in it."""
    role: str
    """``weights``; ``index``: lists which file holds which tensor; ``companion``: a copied side file, not counted."""
    bytes: int
    sha256: str
    modified_ns: int


@record
class Output:
    """A written file, or a folder of files.

    The ``sha256`` of a folder with one weights file is the digest of that file. With several, it is the digest of the
    lines that ``sha256sum`` prints for the weights and their index, sorted by name.
    """

    path: str
    bytes: int
    """Size of the weights and their index."""
    sha256: str
    """Digest of the bytes read back from the disk."""
    dtype: str
    """The requested element type: ``same`` or a torch name."""
    modified_ns: int | None = None
    """Modification time after writing: an unchanged file is recognized by it, without reading it."""
    files: tuple[File, ...] = ()
    """The files of a folder, sorted by name; empty if the output is one file."""
    format: str = "safetensors"
    """``safetensors``; ``same``: a copy of the last checkpoint, with the averages in it; ``dcp``: a folder of
    torch.distributed.checkpoint. The last two have no metadata of this program. Since 1.6."""
    options_fingerprint: str | None = None
    """Hash of every option that decides the bytes, as in the metadata of a safetensors file; ``None`` for an output of
    ``update-bn``. Since 1.6."""

    def named_files(self) -> dict[str, File | Output]:
        """Return the files by name; the name of an output that is one file is empty."""
        return {file.name: file for file in self.files} if self.files else {"": self}


def is_inner_name(name: str) -> bool:
    """Whether a name in a report is that of a file in the folder of its output, or in a folder there."""
    path = PurePosixPath(name)
    return name.isprintable() and str(path) == name and path.name != "" and not {"/", ".."} & {*path.parts}
