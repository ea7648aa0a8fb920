"""The open file of one rank: its pickle, and the places of its storages."""

from __future__ import annotations

import hashlib

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import refusal_of
from ema_cli.formats.torch.first_bytes import looks_like_zip
from ema_cli.formats.torch.zip_archive import Archive
from ema_cli.formats.torch.zip_format import LARGEST_PICKLE, parse_pickle, refuse_other_kinds
from ema_cli.formats.torch_ranks.joined_ranks import StoredPiece
from ema_cli.formats.torch_ranks.rank_objects import reduce_of_rank
from ema_cli.storage.checksums import Record
from ema_cli.storage.source import ByteSource
from ema_cli.text import plural, quoted

_PICKLE = "data.pkl"


class RankArchive:
    """A file in a folder.

    Raises:
        InputRefused: it is no zip archive of ``torch.save``; the message names it.

    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        self.number = folder.open(name)
        self.source: ByteSource = folder.sources[self.number]
        self._storages: dict[str, Record] = {}
        try:
            self.archive = self._open()
            self.digest = hashlib.sha256(self._pickle()).digest()
        except InputRefused as refused:
            raise refusal_of(name, refused) from refused

    def parse(self) -> object:
        """Return the inert value of the pickle.

        Raises:
            InputRefused: it is damaged, or contradicts the archive.

        """
        root, declared = parse_pickle(self._pickle(), reduce=reduce_of_rank)
        declared.compare(self.archive.storage_bytes)
        return root

    def storage(self, place: StoredPiece) -> Record:
        """Return the storage of a piece.

        Raises:
            InputRefused: it is missing, or has another size than is declared.

        """
        found = self._storages.get(place.key)
        if found is None:
            try:
                found = self._storages[place.key] = self.archive.storage_record(place.key)
            except InputRefused as refused:
                raise refusal_of(self.name, refused) from refused
        if found.size != place.storage_bytes:
            raise InputRefused(
                f"{quoted(self.name)} contradicts itself about storage {quoted(place.key)}: it has "
                f"{plural(found.size, 'byte')}, but should have {place.storage_bytes:,}"
            )
        return found

    def locate(self, place: StoredPiece) -> int:
        """Return the byte of the file where a piece begins; raise as ``storage``."""
        return self.storage(place).offset + place.offset

    def read(self, place: StoredPiece, begin: int, size: int) -> bytes:
        """Return some bytes of a piece; raise as ``storage``."""
        return self.source.read(self.locate(place) + begin, size)

    def _open(self) -> Archive:
        if not looks_like_zip(self.source.read(0, min(4, self.source.size()))):
            raise InputRefused(
                "is not a zip archive of torch.save, as the files of ranks must be",
                hint="save it again with torch.save, without _use_new_zipfile_serialization=False",
            )
        archive = Archive(self.source)
        refuse_other_kinds(archive)
        return archive

    def _pickle(self) -> bytes:
        return self.archive.read(_PICKLE, most=LARGEST_PICKLE)
