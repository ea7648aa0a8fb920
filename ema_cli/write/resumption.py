"""Continue an interrupted run: the partial outputs that it left are verified, and not folded again.

The journal of a run lists the tensors that are complete. It is used only if the inputs are untouched and the options
are the same, and a tensor only if its bytes in every partial output have the checksum in the journal.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from zlib_ng import zlib_ng

from ema_cli._version import __version__
from ema_cli.errors import EmaAvgError, EmaAvgWarning
from ema_cli.events import Counted, Info, Listener
from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.plan import Plan
from ema_cli.text import human_bytes, plural, quoted
from ema_cli.write.file import OutputFile, check_space, reserve_space
from ema_cli.write.journal import Journal
from ema_cli.write.permissions import mode_of_new_file
from ema_cli.write.publish import Writing
from ema_cli.write.temp_names import resumable_name

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 512
"""Unit of ``st_blocks``."""


class ResumableFile(OutputFile):
    """An output file that can be kept when its run is interrupted, under a name that the next run finds."""

    keep = False
    """Whether ``discard`` keeps the file."""

    def _temporary_name(self) -> Path:
        return resumable_name(self.path)

    def _create(self) -> None:
        """Make the file, or open the file that an interrupted run left, and reserve its space."""
        with Writing(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._temp, flags, mode_of_new_file(self._permissions()))
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, f"{self._temp.name} is not a regular file")
            if status.st_size != self.size:
                os.ftruncate(self._fd, 0)
            used = os.fstat(self._fd).st_blocks * _BLOCK_BYTES
            check_space(os.fstatvfs(self._fd), max(0, self.size - used))
            reserve_space(self._fd, self.size)

    def holds(self, offset: int, length: int, crc: int) -> bool:
        """Return whether the bytes at ``offset`` of the data section have this CRC-32.

        Raises:
            OutputError: they cannot be read.

        """
        return self._has(len(self._header) + offset, length, crc)

    def _has(self, begin: int, length: int, crc: int) -> bool:
        found = 0
        with Writing(self.path):
            for position in range(begin, begin + length, _PIECE_BYTES):
                piece = os.pread(self._fd, min(_PIECE_BYTES, begin + length - position), position)
                found = zlib_ng.crc32(piece, found)
        return found == crc

    def accept(self, offset: int, length: int, crc: int) -> None:
        """Count the bytes at ``offset`` of the data section as written.

        Raises:
            OutputError: the file cannot be made durable.

        """
        self._accept(len(self._header) + offset, length, crc)

    def _accept(self, begin: int, length: int, crc: int) -> None:
        with Writing(self.path):
            if length:
                self._count(begin, length, crc)

    def discard(self) -> None:
        """Close the file, and remove it unless it must be kept; does nothing after ``publish``."""
        if self.keep and not self._published:
            self._stop()
        else:
            super().discard()


class Resumption:
    """The partial outputs and the journal of a run with ``--resume``.

    Args:
        plan: of the run.
        files: the outputs, open.
        geometry: the mode that the geometry is measured in; another mode does not continue the run.

    """

    def __init__(self, plan: Plan, files: Sequence[ResumableFile], geometry: str) -> None:
        self._plan = plan
        self._files = files
        self.run = _digest_of_run(plan, geometry)
        """A digest of everything that decides the outputs and the results of the fold."""
        self.journal = Journal(plan.outputs[0].local, self.run)
        self.done: list[TensorOutcome] = []
        """The tensors that are complete."""

    def begin(self, listener: Listener) -> None:
        """Find the tensors that are complete, report them, and begin the journal of this run.

        Raises:
            OutputError: the journal or a partial output cannot be read or written.

        """
        listed = self.journal.read()
        if listed is None and self.journal.exists():
            journal = quoted(self.journal.path.name)
            listener(Info(message=f"starting over: {journal} belongs to a run with other inputs or options"))
        self.done = self._verify(listed or [], listener)
        if self.done:
            nbytes = sum(self._plan.tensors[outcome.number].nbytes for outcome in self.done) * len(self._files)
            share = f"{len(self.done):,} of {plural(len(self._plan.tensors), 'tensor')} ({human_bytes(nbytes)})"
            listener(Info(message=f"continuing the interrupted run: {share} are complete"))
        for file in self._files:
            file.keep = True
        self.journal.begin(self.done)

    def finish(self) -> None:
        """Remove the journal, once the outputs have their names."""
        self.journal.remove()

    def leave(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        """Keep everything if the run was interrupted, and nothing if it failed, because it would fail again."""
        self.journal.close()
        if isinstance(failure, EmaAvgError | EmaAvgWarning):
            self.give_up()

    def give_up(self) -> None:
        """Keep nothing."""
        for file in self._files:
            file.keep = False
        self.journal.remove()

    def _verify(self, listed: Sequence[TensorOutcome], listener: Listener) -> list[TensorOutcome]:
        """Return the listed tensors that are in all outputs, and count their bytes there as written."""
        candidates = list({outcome.number: outcome for outcome in listed if self._fits(outcome)}.values())
        nbytes = sum(self._plan.tensors[outcome.number].nbytes for outcome in candidates) * len(self._files)
        count = Counted("checking partial outputs", nbytes, listener)
        verified = []
        for outcome in candidates:
            tensor = self._plan.tensors[outcome.number]
            copies = list(zip(self._files, outcome.written_crc32, strict=True))
            if all(file.holds(tensor.offset, tensor.nbytes, crc) for file, crc in copies):
                for file, crc in copies:
                    file.accept(tensor.offset, tensor.nbytes, crc)
                verified.append(outcome)
            count.add(tensor.nbytes * len(self._files))
        return verified

    def _fits(self, outcome: TensorOutcome) -> bool:
        """Return whether a line of the journal has a tensor of the plan, with as many values as the plan needs."""
        if not 0 <= outcome.number < len(self._plan.tensors):
            return False
        contributors = self._plan.contributors(self._plan.tensors[outcome.number])
        counts = (len(outcome.written_crc32), len(outcome.statistics), len(outcome.read_crc32))
        outputs = len(self._files)
        return counts == (outputs, outputs, len(contributors))


def _digest_of_run(plan: Plan, geometry: str) -> str:
    """Hash everything that decides the outputs and the results of the fold."""
    deciding = {
        "version": __version__,
        "inputs": [(checkpoint.fingerprint, checkpoint.index.state) for checkpoint in plan.checkpoints],
        "weights": [output.weighting.weights for output in plan.outputs],
        "files": [[file.header.hex() for file in output.files] for output in plan.outputs],
        "places": [output.placement and output.placement.tensors for output in plan.outputs],
        "tensors": [(tensor.name, str(tensor.action), tensor.copied_from) for tensor in plan.tensors],
        "geometry": geometry,
        "method": [dataclasses.asdict(output.weighting.method) for output in plan.outputs],
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()
