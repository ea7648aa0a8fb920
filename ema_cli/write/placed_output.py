"""Outputs on a disk whose tensors have given places in one file: a copy of the last checkpoint with the averages."""

from __future__ import annotations

from ema_cli.records.files import Placement
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.file_areas import areas_of
from ema_cli.write.placed_file import FileOfPlaces, OnCopied, no_progress
from ema_cli.write.scatter import PlacedTensors


class PlacedOutput(FileOfPlaces):
    """A single file; see ``Target``."""

    def __init__(self, output: PlannedOutput, *, on_copied: OnCopied = no_progress) -> None:
        placement = placement_of(output)
        (planned,) = placement.files
        (areas,) = areas_of(placement.files, placement.tensors)
        super().__init__(
            *(output.local, planned, areas),
            read_back_whole=output.read_back_whole,
            on_copied=on_copied,
        )
        self._tensors = PlacedTensors(placement.tensors)

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data`` at byte ``offset`` of the data section."""
        for piece in self._tensors.pieces(offset, data):
            self.put(piece)


def placement_of(output: PlannedOutput) -> Placement:
    """Return the places of an output that has some."""
    assert output.placement is not None, "the output is no safetensors file"  # noqa: S101
    return output.placement
