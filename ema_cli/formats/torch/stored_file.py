"""A file of torch with everything that has to be known before bytes of its storages are replaced."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from ema_cli.formats.torch.first_bytes import looks_like_pickle, looks_like_zip
from ema_cli.formats.torch.legacy_format import read_legacy_storages
from ema_cli.formats.torch.references import CountedStorages, References
from ema_cli.formats.torch.zip_archive import Archive
from ema_cli.formats.torch.zip_format import LARGEST_PICKLE, parse_pickle
from ema_cli.formats.torch.zip_records import StoredRecord, ZipRecords
from ema_cli.storage.source import ByteSource

_HEAD_BYTES = 512


class StoredFile:
    """The storages of a file by position, and all that refers to them.

    Args:
        references: to the storages.
        records: those of a zip archive.
        places: of the storages of an older file, by key: first byte and size.

    """

    def __init__(
        self,
        references: References,
        records: ZipRecords | None = None,
        places: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.references = references
        self._records = records
        self._sorted = sorted((begin, key) for key, (begin, _) in (places or {}).items())

    def announce(self, offsets: Iterable[int]) -> None:
        """Announce to a remote source that ``at`` will be asked for these bytes."""
        if self._records is not None:
            self._records.announce(offsets)

    def at(self, offset: int) -> StoredRecord:
        """Return the storage with the byte at ``offset``, with its checksum if it has one.

        Raises:
            InputRefused: the file contradicts itself about it.

        """
        if self._records is not None:
            return self._records.at(offset)
        begin, key = self._sorted[bisect_right(self._sorted, offset, key=lambda one: one[0]) - 1]
        return StoredRecord(key, begin, None)


def open_stored(source: ByteSource) -> StoredFile | None:
    """Return the storages of a file that was read as a checkpoint before; ``None`` if it is not of torch.

    Raises:
        InputRefused: it has too many values to examine.

    """
    head = source.read(0, min(_HEAD_BYTES, source.size()))
    storages = CountedStorages()
    if looks_like_zip(head):
        root, _ = parse_pickle(Archive(source).read("data.pkl", most=LARGEST_PICKLE), storages)
        return StoredFile(References(root, storages), records=ZipRecords(source))
    if looks_like_pickle(head):
        root, places = read_legacy_storages(source, storages)
        return StoredFile(References(root, storages), places=places)
    return None
