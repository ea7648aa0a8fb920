"""A folder that several processes write: whole files each, and parts of those that are shared.

Rank 0 makes the folder with all its files, writes the side files, and publishes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import SharedFile, check_finished, gather_written, part_of
from ema_cli.records.files import FileRole, PlannedFile, Written, WrittenFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file import OutputFile
from ema_cli.write.folder import OutputFolder
from ema_cli.write.folder_files import FolderFiles
from ema_cli.write.old_folder import OldFolder


class FolderOfRanks(OutputFolder):
    """A folder that rank 0 makes and publishes, and that several processes write into."""

    _meeting: Meeting

    def open(self) -> None:
        """Make the folder, in rank 0."""
        if self._meeting.is_first:
            super().open()

    def _complete(self, shared: Iterable[OutputFile], found: Sequence[WrittenFile]) -> Written:
        """Write the side files, make the folder durable, and return the description of all; in rank 0 alone."""
        if not self._meeting.is_first:
            return Written(files=())
        by_name = {one.name: one for one in found}
        for file in shared:
            check_finished(file, by_name[file.path.relative_to(self.path).as_posix()])
        sides = [self._write_side_file(side) for side in self._output.beside]
        files = sorted((*found, *sides), key=lambda file: file.name)
        return self._conclude(Written(files=tuple(files), folder=True))

    def discard(self) -> None:
        """Remove the folder in rank 0; close its files in others."""
        if self._meeting.is_first:
            super().discard()
        else:
            FolderFiles.discard(self)


class SharedFolder(FolderOfRanks):
    """The folder as one of its writers sees it; see ``Target``. All processes call ``finish`` together.

    Args:
        output: what to write.
        old: the folder that is replaced; for rank 0.
        temp: path of the folder until it is published; rank 0 makes it.
        places: where the bytes of each rank begin and end in the data section.
        meeting: of the processes.

    """

    def __init__(
        self,
        output: PlannedOutput,
        old: OldFolder | None,
        temp: Path | None,
        places: list[tuple[int, int]],
        meeting: Meeting,
    ) -> None:
        self._meeting = meeting
        self._places = places
        self._shared: list[SharedFile] = []
        super().__init__(output, old, temp=temp)

    def _make_file(self, planned: PlannedFile, role: FileRole) -> OutputFile:
        if role is not FileRole.WEIGHTS:
            return super()._make_file(planned, role)
        file = SharedFile(
            self.path / planned.name,
            planned,
            part_of(planned, self._places, self._meeting.rank),
            makes=self._meeting.is_first,
            temp=self._temp / planned.name,
            role=role,
            most=self._most,
            read_back_whole=self._output.read_back_whole,
        )
        self._shared.append(file)
        return file

    def _missing_bytes(self, planned: PlannedFile) -> int:
        part = part_of(planned, self._places, self._meeting.rank)
        return part.end - part.begin

    def finish(self) -> Written:
        """Finish all files; return their descriptions in rank 0, and nothing in others."""
        done: list[WrittenFile] = []
        for file, shard in zip(self._shared, self._shards, strict=True):
            if file.part.takes_part:
                done += shard.finish()
        self._meeting.wait_for_all()
        for file in self._shared:
            if not file.part.is_whole and file.part.is_owner:
                done.append(file.complete())
            file.close()
        found = gather_written(self._meeting, done)
        return self._complete(self._shared, found)
