"""Files and folders in which tensors have given places, as targets of several processes; see ``shared_places``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_folder import FolderOfRanks
from ema_cli.distributed.shared_places import PlacedPart, finish_parts, owners_of
from ema_cli.events import Counted, Listener
from ema_cli.records.files import PlacedFile, Written
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file_areas import FileAreas, areas_of
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.placed_file import FileOfPlaces, no_progress
from ema_cli.write.placed_folder import PlacedFolder
from ema_cli.write.placed_output import placement_of
from ema_cli.write.scatter import PlacedTensors


class SharedPlacedFile(PlacedPart):
    """An output that is one file; see ``Target``. All processes call ``finish`` together; rank 0 is its owner."""

    def __init__(self, output: PlannedOutput, temp: Path, meeting: Meeting, listener: Listener) -> None:
        placement = placement_of(output)
        (planned,) = placement.files
        (areas,) = areas_of(placement.files, placement.tensors)
        copied = Counted("copying", sum(end - begin for begin, end in areas.copied), listener)
        super().__init__(
            *(output.local, planned, areas),
            makes=meeting.is_first,
            is_owner=meeting.is_first,
            temp=temp,
            read_back_whole=output.read_back_whole,
            on_copied=copied.add,
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
        return self.adopt(finish_parts({self.path.name: self}, self._meeting))


class SharedPlacedFolder(FolderOfRanks, PlacedFolder):
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

    def _make_placed(
        self, planned: PlacedFile, areas: FileAreas, on_copied: Callable[[int], None] = no_progress
    ) -> FileOfPlaces:
        if planned.name not in self._owners:
            return super()._make_placed(planned, areas, on_copied)
        part = PlacedPart(
            *(self.path / planned.name, planned, areas),
            makes=self._meeting.is_first,
            is_owner=self._owners[planned.name] == self._meeting.rank,
            temp=self._temp / planned.name,
            most=self._most,
            read_back_whole=self._output.read_back_whole,
            name=planned.name,
            follows=False,
            on_copied=on_copied,
        )
        self._parts[planned.name] = part
        return part

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        for piece in self._tensors.pieces(offset, data):
            shard = self._places[piece.file]
            shard.open()
            shard.file.put(piece)

    def finish(self) -> Written:
        """Finish all files; return their descriptions in rank 0, and nothing in others."""
        found = finish_parts(self._parts, self._meeting)
        return self._complete(self._parts.values(), found)


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
        return SharedPlacedFile(output, temp, meeting, listener)
    owners = owners_of(placement, places)
    return SharedPlacedFolder(output, old, listener, temp=temp, owners=owners, meeting=meeting)
