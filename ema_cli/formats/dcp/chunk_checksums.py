"""Where the chunks of a DCP folder have the CRC-32s of their data: every chunk is a zip archive in a ``.distcp`` file.

Archives of one length have their checksums at the same places. So one of them is parsed; of the others the checksums
are compared with that of the data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from ema_cli.formats.dcp.data_files import Window
from ema_cli.formats.dcp.metadata import parse_metadata
from ema_cli.formats.dcp.saved_items import SavedTensor
from ema_cli.formats.torch.zip_records import ZipRecords
from ema_cli.records.files import Checksum
from ema_cli.storage.source import ByteSource


class ChunkChecksums:
    """The checksums of the chunks that the bytes of ``.metadata`` declare.

    Raises:
        InputRefused: they are damaged.

    """

    def __init__(self, raw: bytes) -> None:
        ranges: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        for item in parse_metadata(raw).items.values():
            for chunk in item.chunks if isinstance(item, SavedTensor) else ():
                ranges[chunk.stored.file].add((chunk.stored.offset, chunk.stored.length))
        self._ranges = {name: sorted(found) for name, found in ranges.items()}
        self._known: dict[tuple[int, int], Checksum] = {}
        """By the length of an archive and the place of its tensor; places count from its beginning."""

    def find(self, name: str, source: ByteSource, offset: int, crc32: int) -> Checksum | None:
        """Return the checksum of the data at ``offset`` of the file ``name``; ``None`` if there is none.

        Args:
            name: of the file in the folder.
            source: the file.
            offset: of a tensor.
            crc32: of the record with it; 0 if it has none.

        Raises:
            InputRefused: the archive is damaged.

        """
        if not crc32:
            return None
        begin, length = self._chunk(self._ranges[name], offset)
        known = self._known.get((length, offset - begin))
        if known is not None and _are_there(source, begin, known.fields, crc32):
            return _moved(known, begin)
        found = ZipRecords(Window(source, begin, length)).at(offset - begin).checksum
        if found is None:
            return None
        self._known[length, offset - begin] = found
        return _moved(found, begin)

    @staticmethod
    def _chunk(ranges: Sequence[tuple[int, int]], offset: int) -> tuple[int, int]:
        return ranges[bisect_right(ranges, offset, key=lambda one: one[0]) - 1]


def _are_there(source: ByteSource, begin: int, fields: Sequence[int], crc32: int) -> bool:
    """Whether all fields of an archive that begins at ``begin`` have this value."""
    expected = crc32.to_bytes(4, "little")
    return all(source.read(begin + field, 4) == expected for field in fields)


def _moved(one: Checksum, begin: int) -> Checksum:
    """Return a checksum of an archive with its places in the file."""
    return Checksum(begin=one.begin + begin, nbytes=one.nbytes, fields=tuple(field + begin for field in one.fields))
