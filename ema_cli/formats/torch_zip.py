"""The zip format of ``torch.save`` (since 1.6): one pickle, and one stored record per storage.

The archive holds ``<root>/data.pkl``, ``<root>/data/<key>`` and, in newer files, ``byteorder``. Where a record's
bytes begin is read from its local header: archives that were unpacked and zipped again are not aligned, so computed
offsets are wrong there. Reference: ``torch/serialization.py`` and APPNOTE 4.3.7 of the zip format.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle import loads
from ema_cli.formats.inert_values import PickleError
from ema_cli.formats.state_dict import find_state_dict
from ema_cli.formats.steps import read_steps
from ema_cli.formats.structure import Structure
from ema_cli.formats.torch_objects import reduce, storage_from_persistent_id
from ema_cli.formats.torch_tensors import place_all
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

LARGEST_PICKLE = 1 << 28
_LARGEST_DIRECTORY = 1 << 30
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800
_LONGEST_ORDER = 16
FETCH_AGAIN = "was it saved or copied to the end? leave it out, or fetch it again"
RESAVE = "torch.save(torch.load(path, weights_only=True), path)"


def looks_like_zip(head: bytes) -> bool:
    """Whether a file begins as a zip archive."""
    return head.startswith(_LOCAL_SIGNATURE)


def read_torch_zip(source: ByteSource, key: str | None) -> Structure:
    """Read the structure of a zip checkpoint.

    Raises:
        InputRefused: it is incomplete, compressed, big-endian, TorchScript, or does not fit together.

    """
    archive = _Archive(source)
    pickle = archive.pickle()
    try:
        root, _ = loads(pickle, reduce=reduce, persistent_load=storage_from_persistent_id)
    except PickleError as error:
        raise InputRefused(f"has a damaged pickle: {error}") from error
    chosen = find_state_dict(root, key)
    layouts, offsets = place_all(chosen.tensors, archive.record)
    return Structure(
        format="torch zip",
        layouts=layouts,
        offsets=offsets,
        digest=hashlib.sha256(pickle).digest(),
        key=chosen.key,
        steps=tuple(read_steps(root, source, archive.record)),
        ignored=chosen.ignored,
        notes=chosen.notes,
    )


class _Archive:
    """The directory of a zip file, and where its records' bytes lie."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        try:
            with zipfile.ZipFile(_SourceFile(source)) as archive:
                entries = archive.infolist()
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            ValueError,
            struct.error,
            OSError,
        ) as error:
            raise InputRefused(
                "is incomplete or damaged: the directory at the end of the zip archive cannot be read",
                hint=FETCH_AGAIN,
            ) from error
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise InputRefused("holds two records of one name")
        _refuse_overlaps(entries)
        self._root = self._find_root()

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise InputRefused("is a zip archive, but not one that torch.save wrote")
        return roots[0]

    def pickle(self) -> bytes:
        """Return the bytes of ``data.pkl``, after checking that this is the kind of archive we read."""
        if f"{self._root}constants.pkl" in self._entries:
            raise InputRefused(
                "is a TorchScript archive, not a checkpoint",
                hint="save its weights with: torch.save(torch.jit.load(path).state_dict(), path)",
            )
        if f"{self._root}byteorder" in self._entries:
            offset, size = self.record("byteorder", path=True)
            order = self._source.read(offset, min(size, _LONGEST_ORDER))
            if order != b"little":
                raise InputRefused(
                    f"holds {quoted(order.decode('ascii', 'replace'))}-endian data; only little-endian is read",
                    hint=f"on a little-endian machine: {RESAVE}",
                )
        offset, size = self.record("data.pkl", path=True)
        if size > LARGEST_PICKLE:
            raise InputRefused(f"has a pickle of {size:,} bytes; more than {LARGEST_PICKLE:,} are refused")
        pickle = self._source.read(offset, size)
        checksum = self._entries[f"{self._root}data.pkl"].CRC
        if checksum not in (0, zlib.crc32(pickle)):  # torch writes 0 when it was told to compute none
            raise InputRefused("has a damaged pickle: its checksum is wrong", hint=FETCH_AGAIN)
        return pickle

    def record(self, key: str, *, path: bool = False) -> tuple[int, int]:
        """Return the byte offset and the size of a storage, or of the record at ``key`` if it is a path."""
        name = f"{self._root}{key}" if path else f"{self._root}data/{key}"
        entry = self._entries.get(name)
        if entry is None:
            raise InputRefused(f"has no record {quoted(name)}: it is incomplete")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise InputRefused(
                f"is a compressed archive (record {quoted(name)}), so its tensors cannot be read piece by piece",
                hint=f"save it again, uncompressed: {RESAVE}",
            )
        if entry.compress_size != entry.file_size:
            raise InputRefused(f"contradicts itself about the size of record {quoted(name)}")
        return self._data_offset(entry), entry.file_size

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        damaged = InputRefused(f"has a damaged record {quoted(entry.filename)}")
        if entry.header_offset < 0 or entry.header_offset + _LOCAL_HEADER.size > self._source.size():
            raise damaged
        fields = _LOCAL_HEADER.unpack(self._source.read(entry.header_offset, _LOCAL_HEADER.size))
        signature, method, name_bytes, extra_bytes = fields[0], fields[3], fields[-2], fields[-1]
        start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if signature != _LOCAL_SIGNATURE or start + entry.file_size > self._source.size():
            raise damaged
        name = self._source.read(entry.header_offset + _LOCAL_HEADER.size, name_bytes)
        encoding = "utf-8" if entry.flag_bits & _UTF8_NAME else "cp437"
        if name != entry.orig_filename.encode(encoding) or method != entry.compress_type:
            raise damaged
        return int(start)


def _refuse_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Two records in the same bytes are no archive that anything writes."""
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < position:
            raise InputRefused(f"has a damaged record {quoted(entry.filename)}: it overlaps another")
        position = entry.header_offset + _LOCAL_HEADER.size + len(entry.orig_filename) + entry.compress_size


class _SourceFile(io.RawIOBase):
    """A byte source as the file object that ``zipfile`` wants, for the directory at the end of the archive."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size()}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size() - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if count > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("a directory of unreasonable size")
        self._position += count
        return self._source.read(self._position - count, count)
