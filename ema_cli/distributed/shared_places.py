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
from ema_cli.distributed.shared_file import check_finished, gather_written, refuse_missing
from ema_cli.events import Listener
from ema_cli.records.files import PlacedFile, Placement, Written, WrittenFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file_areas import FileAreas, areas_of
from ema_cli.write.folder_files import FolderFiles
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.placed_file import FileOfPlaces
from ema_cli.write.placed_folder import PlacedFolder
from ema_cli.write.placed_output import placement_of
from ema_cli.write.publish import Writing, state_of
from ema_cli.write.scatter import PlacedTensors

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


class PlacedPart(FileOfPlaces):
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

    def make(self) -> None:
        """Make the file and take its space, before any process opens it."""
        with Writing(self.path):
            self._before = state_of(self.path)
        self.reserve()

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

    def adopt(self, written: WrittenFile) -> None:
        """Take over the description that the owner has made, to publish the file."""
        self._written = written

    def discard(self) -> None:
        """Remove the file in the process that has made it; close it in others."""
        if self._makes:
            super().discard()
        else:
            self._stop()


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


class SharedPlacedFile(PlacedPart):
    """An output that is one file; see ``Target``. All processes call ``finish`` together; rank 0 is its owner."""

    def __init__(self, output: PlannedOutput, temp: Path, meeting: Meeting, **options: Any) -> None:  # noqa: ANN401
        placement = placement_of(output)
        (planned,) = placement.files
        (areas,) = areas_of(placement.files, placement.tensors)
        super().__init__(
            *(output.local, planned, areas),
            makes=meeting.is_first,
            is_owner=meeting.is_first,
            temp=temp,
            read_back_whole=output.read_back_whole,
            **options,
        )
        self._meeting = meeting
        self._tensors = PlacedTensors(placement.tensors)

    def open(self) -> None:
        """Make the file in rank 0; open it in every process."""
        if self._makes:
            self.make()
        super().open()

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section."""
        for piece in self._tensors.pieces(offset, data):
            self.put(piece)

    def finish(self) -> Written:
        """Finish the file; return its description in rank 0, and nothing in others."""
        found = finish_parts({self.path.name: self}, self._meeting)
        if found:
            self.adopt(found[0])
            check_finished(self, found[0])
        return Written(files=tuple(found))


class SharedPlacedFolder(PlacedFolder):
    """An output that is a folder; see ``Target``. All processes call ``finish`` together.

    Args:
        output: what to write.
        old: the folder that is replaced; for rank 0.
        listener: hears about copies.
        temp: path of the folder until it is published; rank 0 makes it.
        owners: of the files, by name.
        meeting: of the processes.

    """

    def __init__(
        self,
        output: PlannedOutput,
        old: OldFolder | None,
        listener: Listener,
        *,
        temp: Path,
        owners: Mapping[str, int],
        meeting: Meeting,
    ) -> None:
        self._owners = owners
        self._meeting = meeting
        self._parts: dict[str, PlacedPart] = {}
        super().__init__(output, old, listener, temp=temp)

    def _make_placed(self, planned: PlacedFile, areas: FileAreas) -> FileOfPlaces:
        if planned.name not in self._owners:
            return super()._make_placed(planned, areas)
        part = PlacedPart(
            *(self.path / planned.name, planned, areas),
            makes=self._meeting.is_first,
            is_owner=self._owners[planned.name] == self._meeting.rank,
            temp=self._temp / planned.name,
            most=self._most,
            read_back_whole=self._output.read_back_whole,
            name=planned.name,
            follows=False,
        )
        self._parts[planned.name] = part
        return part

    def open(self) -> None:
        """Make the folder, in rank 0."""
        if self._meeting.is_first:
            super().open()

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        for piece in self._tensors.pieces(offset, data):
            shard = self._places[piece.file]
            shard.open()
            shard.file.put(piece)

    def finish(self) -> Written:
        """Finish all files; return their descriptions in rank 0, and nothing in others."""
        found = finish_parts(self._parts, self._meeting)
        if not self._meeting.is_first:
            return Written(files=())
        by_name = {one.name: one for one in found}
        for name, part in self._parts.items():
            check_finished(part, by_name[name])
        sides = [self._write_side_file(side) for side in self._output.beside]
        files = sorted((*found, *sides), key=lambda file: file.name)
        return self._conclude(Written(files=tuple(files), folder=True))

    def discard(self) -> None:
        """Remove the folder in rank 0; close its files in others."""
        if self._meeting.is_first:
            super().discard()
        else:
            FolderFiles.discard(self)


def make_shared_placed(
    output: PlannedOutput,
    places: Sequence[tuple[int, int]],
    meeting: Meeting,
    *,
    old: OldFolder | None,
    temp: Path,
    listener: Listener,
) -> SharedPlacedFile | SharedPlacedFolder:
    """Return the target of an output; see ``make_shared``."""
    placement = placement_of(output)
    if not placement.folder:
        return SharedPlacedFile(output, temp, meeting)
    owners = owners_of(placement, places)
    return SharedPlacedFolder(output, old, listener, temp=temp, owners=owners, meeting=meeting)
