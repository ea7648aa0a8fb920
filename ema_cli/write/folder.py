"""An output that is a folder: built beside its place, and put there whole."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from ema_cli.records.files import Written
from ema_cli.records.plan import PlannedOutput
from ema_cli.write.exchange import exchange
from ema_cli.write.file import check_space
from ema_cli.write.foreign_changes import State, refuse_stranger, refuse_touched, state_of
from ema_cli.write.publish import raise_output_error, sync_folder
from ema_cli.write.shard_file import ShardFile
from ema_cli.write.small_files import write_side
from ema_cli.write.temp_names import holds_something, name_aside, remove, remove_aside, temporary_name


class OutputFolder:
    """A folder of safetensors files, whose data sections, one after the other, are that of the output."""

    def __init__(self, output: PlannedOutput) -> None:
        self.path = output.local
        self._output = output
        self._temp = temporary_name(output.local)
        self._begins = [planned.begin for planned in output.files]
        self._shards = [ShardFile(one, self.path / one.name, self._temp / one.name) for one in output.files]
        self._replaces = False
        self._before: State | None = None
        """What stood in its place when the run began."""
        self._written: Written | None = None
        self._published = False

    def open(self) -> None:
        """Make the folder and take the space of its files. Arrange for ``discard`` before.

        Raises:
            OutputError: there is no space, no permission, or an I/O error.

        """
        try:
            self._before = state_of(self.path)
            self._replaces = holds_something(self.path)
            self._temp.mkdir()
            sizes = [*(one.nbytes for one in self._output.files), *(one.nbytes for one in self._output.beside)]
            check_space(os.statvfs(self._temp), sum(sizes))
        except OSError as error:
            raise_output_error(self.path, error)
        for shard in self._shards:
            shard.open()

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Place ``data`` at byte ``offset`` of the data section of all files; safe to call from several threads."""
        if len(data):
            number = bisect_right(self._begins, offset) - 1
            self._shards[number].write(offset - self._begins[number], data)

    def finish(self) -> Written:
        """Make the folder durable and check what is on the disk, still under its temporary name.

        Raises:
            OutputError: it could not be written, or reads back differently.
            InputChanged: a file that is carried over is not there any more as it was.

        """
        weights = [shard.finish() for shard in self._shards]
        sides = [write_side(side, self.path / side.name, self._temp / side.name) for side in self._output.beside]
        try:
            sync_folder(self._temp)
        except OSError as error:
            raise_output_error(self.path, error)
        self._written = Written(files=tuple(sorted([*weights, *sides], key=lambda one: one.name)), folder=True)
        return self._written

    def publish(self) -> None:
        """Give the folder its name; one that has it now makes way, and comes back if that fails.

        Raises:
            OutputError: the system refuses, or another program was at work here meanwhile.

        """
        assert self._written is not None, "finish comes first"  # noqa: S101
        try:
            for file in self._written.files:
                refuse_touched(self._temp / file.name, file)
            refuse_stranger(self.path, self._before)
            if not (self._replaces and self._change_places()):
                self._take_place()
        except OSError as error:
            raise_output_error(self.path, error)

    def _change_places(self) -> bool:
        """Take the place of the old folder and remove it, if the system can let the two change places."""
        if not exchange(self._temp, self.path):
            return False
        self._published = True
        try:
            sync_folder(self.path.parent)
        except BaseException:
            exchange(self._temp, self.path)
            self._published = False
            raise
        with contextlib.suppress(OSError):  # a later run sweeps what cannot be removed now
            remove(self._temp)
        return True

    def _take_place(self) -> None:
        """Take a place that is free, or that is left for this."""
        aside = name_aside(self.path) if self._replaces else None
        if aside is not None:
            self.path.rename(aside)
        try:
            self._temp.rename(self.path)
            sync_folder(self.path.parent)
        except BaseException:
            if not self._temp.exists():
                self.path.rename(self._temp)
            if aside is not None:
                aside.rename(self.path)
            raise
        self._published = True
        if aside is not None:
            with contextlib.suppress(OSError):
                remove_aside(aside, self.path)

    def discard(self) -> None:
        """Remove what was built; nothing happens after ``publish``."""
        if self._published:
            return
        for shard in self._shards:
            shard.discard()
        with contextlib.suppress(OSError):
            remove(self._temp)
