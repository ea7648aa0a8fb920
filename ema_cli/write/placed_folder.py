"""A folder on a disk in whose files tensors have given places: a copy of a checkpoint folder with the averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ema_cli.events import Counted, Listener, ignore
from ema_cli.records.files import PlacedFile, SideFile, WrittenFile
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.descriptor_pool import raise_limit
from ema_cli.write.file_areas import FileAreas, areas_of
from ema_cli.write.folder import OutputFolder
from ema_cli.write.folder_files import Shard, open_unchanged
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.permissions import Permissions, mode_of_new_folder
from ema_cli.write.placed_file import FileOfPlaces, no_progress
from ema_cli.write.placed_output import placement_of
from ema_cli.write.publish import sync_folder
from ema_cli.write.scatter import PlacedTensors

_FOLLOWED = 8
"""Files that are written back and verified while they are written; of more files, each is when it is complete."""
_MANY_FILES = 256
"""More files than that may be too many to have open."""


class PlacedFolder(OutputFolder):
    """The folder; see ``Target``.

    Args:
        output: what to write.
        old: as of ``OutputFolder``.
        listener: hears about the files that are copied whole.
        temp: as of ``OutputFolder``.

    """

    def __init__(
        self,
        output: PlannedOutput,
        old: OldFolder | None = None,
        listener: Listener = ignore,
        *,
        temp: Path | None = None,
    ) -> None:
        super().__init__(output, old, temp=temp)
        self._placement = placement_of(output)
        self._tensors = PlacedTensors(self._placement.tensors)
        total = sum(side.nbytes for side in output.beside)
        self._copied = Counted("copying", total, listener)
        self._areas = areas_of(self._placement.files, self._placement.tensors)
        self._places = [
            Shard(self._make_placed(file, areas), areas.data_bytes)
            for file, areas in zip(self._placement.files, self._areas, strict=True)
        ]
        self._files += [shard.file for shard in self._places]

    def _make_placed(
        self, planned: PlacedFile, areas: FileAreas, on_copied: Callable[[int], None] = no_progress
    ) -> FileOfPlaces:
        return FileOfPlaces(
            *(self.path / planned.name, planned, areas),
            temp=self._temp / planned.name,
            most=self._most,
            read_back_whole=self._output.read_back_whole,
            name=planned.name,
            follows=len(self._placement.files) <= _FOLLOWED,
            on_copied=on_copied,
        )

    def open(self) -> None:
        """Make the folder and those inside it, take the space, and put the foreign files of the old folder into it."""
        if len(self._placement.files) > _MANY_FILES:
            raise_limit()
        super().open()

    def _make_folder(self) -> None:
        super()._make_folder()
        for folder in self._inner_folders():
            (self._temp / folder).mkdir(mode_of_new_folder(Permissions.of(self.path / folder)))

    def _inner_folders(self) -> list[str]:
        """Return the folders inside the folder, each after that which it is in."""
        files = [*(file.name for file in self._placement.files), *(side.name for side in self._output.beside)]
        folders = {str(above) for name in files for above in PurePosixPath(name).parents}
        for name in self._placement.empty_folders:
            folders |= {name, *map(str, PurePosixPath(name).parents)}
        return sorted(folders - {"."})

    def _bytes(self) -> int:
        return super()._bytes() + sum(file.nbytes for file in self._placement.files)

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section; safe to call from several threads."""
        for piece in self._tensors.pieces(offset, data):
            shard = self._places[piece.file]
            shard.open()
            shard.file.put(piece)
            shard.count(piece.items.nbytes)

    def _finish_weights(self) -> list[WrittenFile]:
        return [file for shard in self._places for file in shard.finish()]

    def _write_side_file(self, side: SideFile) -> WrittenFile:
        if side.source is None:
            return super()._write_side_file(side)
        with open_unchanged(side) as source:
            planned = PlacedFile(name=side.name, nbytes=side.nbytes, source=source, holds_tensors=False)
            (areas,) = areas_of([planned], ())
            file = self._make_placed(planned, areas, self._copied.add)
            self._files.append(file)
            file.open()
            (written,) = file.finish().files
        return written

    def _sync(self) -> None:
        for folder in self._inner_folders():
            sync_folder(self._temp / folder)
        super()._sync()
