"""Outputs in which tensors have given places (``--format same`` and ``dcp``), written by several processes.

Each file has an owner: it copies or gives what is no tensor, sets the checksums, verifies the whole file, and computes
its digest. The others write their tensors into it, make them durable, and give their CRC-32s to the owner.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zlib_ng import zlib_ng

from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import FileOfRanks, gather_written, refuse_missing
from ema_cli.records.files import PlacedFile, Placement, Written, WrittenFile
from ema_cli.write.file_areas import FileAreas
from ema_cli.write.placed_file import FileOfPlaces
from ema_cli.write.publish import Writing

Counts = Sequence[Sequence[int]]
"""Offset, length and CRC-32 of pieces of a file."""


def owners_of(placement: Placement, places: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Return the owner of each file: the first rank that writes into it; those without tensors are dealt out."""
    owners = {number: number % len(places) for number in range(len(placement.files))}
    first: dict[int, int] = {}
    for tensor in placement.tensors:
        for rank, (begin, end) in enumerate(places):
            if begin < tensor.begin + tensor.nbytes and tensor.begin < end:
                for place in tensor.places:
                    first[place.file] = min(rank, first.get(place.file, rank))
    return {placement.files[number].name: rank for number, rank in (owners | first).items()}


class PlacedPart(FileOfRanks, FileOfPlaces):
    """A file as one of its writers sees it.

    Args:
        path: of the complete file.
        planned: what is in it.
        areas: of the file.
        makes: whether this process makes and publishes the file.
        is_owner: whether it is the owner.
        options: the keywords of ``FileOfPlaces``.

    """

    def __init__(
        self,
        path: Path,
        planned: PlacedFile,
        areas: FileAreas,
        *,
        makes: bool,
        is_owner: bool,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(path, planned, areas, **options)
        self.is_owner = is_owner
        self._makes = makes
        self._reserved = True
        self._bounds = {bound for one in planned.checksums for bound in (one.begin, one.begin + one.nbytes)}
        self._pieces: list[tuple[int, int, int]] = []
        self._of_pieces = threading.Lock()

    def open(self) -> None:
        """Open the file that rank 0 has made; its owner fills everything but the tensors."""
        before = self._before
        if not self._makes:
            refuse_missing(self._temp)
        if self.is_owner:
            super().open()
        else:
            with Writing(self.path):
                self._fd = os.open(self._temp, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._before = before

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._fd >= 0

    def _count(self, offset: int, length: int, crc: int) -> None:
        if self.is_owner:
            super()._count(offset, length, crc)
        else:
            with self._of_pieces:
                self._pieces.append((offset, length, crc))

    def hand_over(self) -> Counts:
        """Make what this process has written durable, and return it for the owner."""
        with Writing(self.path):
            os.fdatasync(self._fd)
        self.close()
        joined: list[list[int]] = []
        for offset, length, crc in sorted(self._pieces):
            if joined and sum(joined[-1][:2]) == offset and offset not in self._bounds:
                joined[-1][2] = zlib_ng.crc32_combine(joined[-1][2], crc, length)
                joined[-1][1] += length
            else:
                joined.append([offset, length, crc])
        return joined

    def finish_own(self) -> Written:
        """Finish the file in its owner, when all pieces are counted."""
        return super().finish()

    def take_over(self, pieces: Counts) -> None:
        """Count what other processes have written."""
        with Writing(self.path):
            for offset, length, crc in pieces:
                self._count(offset, length, crc)


def finish_parts(parts: Mapping[str, PlacedPart], meeting: Meeting) -> list[WrittenFile]:
    """Finish the files of all processes, each by its owner; return their descriptions in rank 0."""
    own = {name: part.hand_over() for name, part in parts.items() if part.is_open and not part.is_owner}
    everything: dict[str, list[Sequence[int]]] = {}
    for data in meeting.gather(json.dumps(own).encode()):
        for name, pieces in json.loads(data).items():
            everything.setdefault(name, []).extend(pieces)
    everything = json.loads(meeting.announce(json.dumps(everything).encode()))
    done: list[WrittenFile] = []
    for name, part in parts.items():
        if part.is_owner:
            if not part.is_open:
                part.open()
            part.take_over(everything.get(name, []))
            done += part.finish_own().files
    return gather_written(meeting, done)
