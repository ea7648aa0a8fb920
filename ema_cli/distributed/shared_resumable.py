"""A single output file that several processes write, and that is kept when they are interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import FilePart, SharedSingle, part_of
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.write.resumption import ResumableFile
from ema_cli.write.temp_names import resumable_name

_NOTHING = FilePart(begin=0, end=0, is_owner=False, is_whole=False)


class SharedResumable(SharedSingle, ResumableFile):
    """See ``Target``, and ``ResumableFile``. What this process writes is known once ``assign`` was called."""

    def __init__(self, output: PlannedOutput, meeting: Meeting) -> None:
        (self._planned,) = output.files
        path = output.local
        options = {"temp": resumable_name(path), "read_back_whole": output.read_back_whole}
        super().__init__(path, self._planned, _NOTHING, meeting, **options)

    def make(self) -> None:
        """Make the file, or find what an interrupted run left, and open it to be checked."""
        super().make()
        self._reopen()

    def assign(self, places: Sequence[tuple[int, int]]) -> None:
        """Set what this process writes; ``places``: where the bytes of each rank are in the data section."""
        self.close()
        self.part = part_of(self._planned, places, self._meeting.rank)

    def begin(self, plan: Plan, done: Iterable[tuple[int, int]]) -> None:
        """Open the file to write the part, except tensors that are complete: their positions, and CRC-32s."""
        if not self.part.takes_part:
            return
        self.open_part()
        for number, crc in done:
            tensor = plan.tensors[number]
            if self.part.begin <= tensor.offset and tensor.offset + tensor.nbytes <= self.part.end:
                self.accept(tensor.offset, tensor.nbytes, crc)
