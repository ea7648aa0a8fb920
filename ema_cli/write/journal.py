"""The journal of a resumable run: one line per complete tensor, appended while the run works.

Each line is the CRC-32 of a JSON document and the document; the first line names the run. A line that is incomplete or
describes no tensor ends the journal: it and all lines after it are ignored. The journal is not trusted for the data:
that is read back before it is used.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ema_cli.records.fold_results import TensorOutcome
from ema_cli.records.record_types import build
from ema_cli.write.permissions import Permissions, mode_of_new_file
from ema_cli.write.publish import Writing, raise_output_error
from ema_cli.write.temp_names import journal_name, journals_of_ranks


class Journal:
    """The journal of one run, beside its output.

    Args:
        output: the path of the output.
        run: a digest of everything that decides the bytes of the output.
        rank: of the process, if several make the output; rank 0 reads and removes the journals of all.

    """

    def __init__(self, output: Path, run: str, rank: int = 0) -> None:
        self.path = journal_name(output, rank)
        self._output = output
        self._run = run
        self._fd = -1
        self._lock = threading.Lock()

    def exists(self) -> bool:
        """Return whether an earlier run left a journal; ``False`` if the system does not say."""
        return os.path.exists(self.path)  # noqa: PTH110 - pathlib raises if the path cannot be looked up

    def read(self) -> list[TensorOutcome] | None:
        """Return the tensors that an earlier run completed; ``None`` if there is no journal, or it names another run.

        Raises:
            OutputError: it cannot be read.

        """
        found = self._read(self.path)
        with Writing(self.path):
            others = journals_of_ranks(self._output)
        of_ranks = [self._read(journal) for journal in others]
        if found is None and not any(of_ranks):
            return None
        return [outcome for outcomes in (found, *of_ranks) for outcome in outcomes or ()]

    def _read(self, path: Path) -> list[TensorOutcome] | None:
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise_output_error(path, error)
        documents = _documents(lines)
        if next(documents, None) != {"run": self._run}:
            return None
        return list(_outcomes(documents))

    def begin(self, done: Iterable[TensorOutcome]) -> None:
        """Write a new journal with the tensors that are complete, and keep it open.

        Raises:
            OutputError: it cannot be written.

        """
        with Writing(self.path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            # It has samples of the tensors, so it is no more readable than the output.
            self._fd = os.open(self.path, flags, mode_of_new_file(Permissions.of(self._output)))
        self._append({"run": self._run})
        for outcome in done:
            self.add(outcome)
        if self.path == journal_name(self._output):
            self._remove_others()

    def add(self, outcome: TensorOutcome) -> None:
        """Add a tensor that is complete; safe to call from several threads.

        Raises:
            OutputError: it cannot be written.

        """
        self._append({**dataclasses.asdict(outcome), "sample": base64.b64encode(outcome.sample).decode()})

    def close(self) -> None:
        """Close the journal and keep it."""
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            with contextlib.suppress(OSError):  # its lines are verified before they are used
                os.close(descriptor)

    def remove(self) -> None:
        """Remove the journal: its run is over."""
        self.close()
        with contextlib.suppress(OSError):  # the next run without --resume removes it
            self.path.unlink(missing_ok=True)
        self._remove_others()

    def _remove_others(self) -> None:
        others: list[Path] = []
        with contextlib.suppress(OSError):  # as above
            others = journals_of_ranks(self._output)
        for journal in others:
            with contextlib.suppress(OSError):
                journal.unlink(missing_ok=True)

    def _append(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, allow_nan=False).encode()
        view = memoryview(b"%08x %s\n" % (zlib.crc32(text), text))
        with Writing(self.path), self._lock:
            while view:
                view = view[os.write(self._fd, view) :]


def _documents(lines: list[bytes]) -> Iterator[Any]:
    """Yield the documents of the lines up to the first line that is incomplete or no JSON."""
    for line in lines:
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text) or not line.endswith(b"\n"):
            return
        try:
            yield json.loads(text, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _outcomes(documents: Iterable[Any]) -> Iterator[TensorOutcome]:
    """Yield the outcomes in the documents, up to the first document that describes no tensor."""
    for document in documents:
        try:
            sample = base64.b64decode(document["sample"], validate=True)
            outcome: TensorOutcome = build(TensorOutcome, {**document, "sample": sample})
        except (KeyError, TypeError, ValueError):
            return
        yield outcome
