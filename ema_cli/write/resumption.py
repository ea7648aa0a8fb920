"""Go on with an interrupted run: what is in its partial outputs is checked, and not folded again.

The journal of a run says which tensors are complete. It counts only for a run of the same inputs, untouched since
in any way, and the same options; and a tensor counts only if its bytes in every partial output are what they were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from ema_cli._version import __version__
from ema_cli.errors import EmaAvgError
from ema_cli.events import Counted, Info, Listener
from ema_cli.options.average import Options
from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.plan import Action, Plan
from ema_cli.text import human_bytes, plural, quoted
from ema_cli.write.journal import Journal
from ema_cli.write.resumable_file import ResumableFile


class Resumption:
    """The partial outputs and the journal of a run under ``--resume``.

    Args:
        plan: of the run.
        options: of the run.
        files: the outputs, open.

    """

    def __init__(self, plan: Plan, options: Options, files: Sequence[ResumableFile]) -> None:
        self._plan = plan
        self._files = files
        self.journal = Journal(plan.outputs[0].local, _digest_of_run(plan, options))
        self.done: list[TensorOutcome] = []
        """The tensors that need not be folded again."""

    def begin(self, listener: Listener) -> None:
        """Find what is done, tell of it, and begin the journal of this run.

        Raises:
            OutputError: the journal or a partial output cannot be read or written.

        """
        told = self.journal.read()
        if told is None and self.journal.is_there():
            listener(Info(message=f"{quoted(self.journal.path.name)} is of other inputs or options: all is done anew"))
        self.done = self._confirm(told or [], listener)
        if self.done:
            nbytes = sum(self._plan.tensors[one.number].nbytes for one in self.done) * len(self._files)
            share = f"{len(self.done):,} of {plural(len(self._plan.tensors), 'tensor')} ({human_bytes(nbytes)})"
            listener(Info(message=f"going on with the interrupted run: {share} are complete"))
        for file in self._files:
            file.keep = True
        self.journal.begin(self.done)

    def finish(self) -> None:
        """Remove the journal, once the outputs have their names."""
        self.journal.remove()

    def leave(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        """Keep what is there when the run was interrupted; nothing when it failed, as another run would fail too."""
        self.journal.close()
        if isinstance(failure, EmaAvgError):
            for file in self._files:
                file.keep = False
            self.journal.remove()

    def _confirm(self, told: Sequence[TensorOutcome], listener: Listener) -> list[TensorOutcome]:
        """Return the tensors whose bytes are in all outputs, and have the outputs take them."""
        told = list({one.number: one for one in told if self._fits(one)}.values())
        nbytes = sum(self._plan.tensors[one.number].nbytes for one in told) * len(self._files)
        count = Counted("checking what is there", nbytes, listener)
        confirmed = []
        for one in told:
            tensor = self._plan.tensors[one.number]
            places = list(zip(self._files, one.written_crc32, strict=True))
            if all(file.holds(tensor.offset, tensor.nbytes, crc) for file, crc in places):
                for file, crc in places:
                    file.accept(tensor.offset, tensor.nbytes, crc)
                confirmed.append(one)
            count.add(tensor.nbytes * len(self._files))
        return confirmed

    def _fits(self, one: TensorOutcome) -> bool:
        """Whether a line of the journal is about a tensor of the plan, and tells of as much as is folded."""
        if not 0 <= one.number < len(self._plan.tensors):
            return False
        averaged = self._plan.tensors[one.number].action is Action.AVERAGED
        counts = (len(one.written_crc32), len(one.statistics), len(one.read_crc32))
        outputs = len(self._files)
        return counts == (outputs, outputs, len(self._plan.used) if averaged else 0)


def _digest_of_run(plan: Plan, options: Options) -> str:
    """Hash everything that decides what is written, and what is found on the way."""
    deciding = {
        "version": __version__,
        "inputs": [(checkpoint.fingerprint, checkpoint.index.state) for checkpoint in plan.checkpoints],
        "weights": [output.weighting.weights for output in plan.outputs],
        "files": [[file.header.hex() for file in output.files] for output in plan.outputs],
        "tensors": [(tensor.name, str(tensor.action), tensor.copied_from) for tensor in plan.tensors],
        "geometry": options.geometry,
        "method": [dataclasses.asdict(output.weighting.method) for output in plan.outputs],
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()
