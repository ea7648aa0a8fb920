"""Choose the target of an output whose tensors have given places: a file or a folder; one that can be resumed."""

from __future__ import annotations

from ema_cli.events import Counted, Listener
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file_areas import areas_of
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.placed_folder import PlacedFolder
from ema_cli.write.placed_output import PlacedOutput, placement_of
from ema_cli.write.resumption import ResumableFile
from ema_cli.write.target import Target


class ResumablePlacedOutput(PlacedOutput, ResumableFile):
    """A single file that can be kept when its run is interrupted. Everything but the tensors is copied again."""

    def holds(self, offset: int, length: int, crc: int) -> bool:
        """Return whether the bytes of a tensor, at ``offset`` of the data section, have this CRC-32 at their place."""
        places = self._tensors.places_at(offset) if length else ()
        return all(
            place.strides is None and not self._areas.is_mixed(place.offset) and self._has(place.offset, length, crc)
            for place in places
        )

    def accept(self, offset: int, length: int, crc: int) -> None:
        """Count the bytes of a tensor as written."""
        for place in self._tensors.places_at(offset) if length else ():
            self._accept(place.offset, length, crc)


def make_placed(output: PlannedOutput, old: OldFolder | None, listener: Listener) -> Target:
    """Return the target of an output that replaces the folder ``old``, if that was found."""
    placement = placement_of(output)
    if placement.folder:
        return PlacedFolder(output, old, listener)
    (areas,) = areas_of(placement.files, placement.tensors)
    copied = Counted("copying", sum(end - begin for begin, end in areas.copied), listener)
    return PlacedOutput(output, on_copied=copied.add)


def make_resumable_placed(output: PlannedOutput) -> ResumablePlacedOutput:
    """Return the target of an output in a single file that is kept when the run is interrupted."""
    return ResumablePlacedOutput(output)
