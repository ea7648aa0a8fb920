"""The inputs of an average, named again by the user (``--input``): they were moved, renamed, or lost their address.

Names -> checkpoints -> the input that each one is: by its fingerprint, then by the digest in the report, then by its
name, and at last by its place in the order. The checks that follow decide whether it really is that input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile

from ema_cli.discovery.candidates import Candidate
from ema_cli.discovery.checkpoints import find_candidates
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.events import Counted, Listener, Opening
from ema_cli.fold.content_digests import digest_of
from ema_cli.formats.own_outputs import marked
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import Input, Report
from ema_cli.storage.digest import sha256_of_all
from ema_cli.text import plural, quoted
from ema_cli.verification.input_reader import InputReader, is_flat
from ema_cli.verification.inputs import FoundInput
from ema_cli.verification.output import WrittenOutput


def match_inputs(
    report: Report,
    output: WrittenOutput,
    names: Sequence[str],
    opened: ExitStack,
    listener: Listener,
    *,
    contents: bool,
) -> list[FoundInput]:
    """Return every input of a report with one of the checkpoints that ``names`` stand for, in the order of the report.

    Args:
        report: of one average; checked.
        output: is no input, and may be in a folder that is named.
        names: files, folders, patterns and URLs, as on the command line.
        opened: closes the checkpoints.
        listener: receives the progress.
        contents: whether the weights may be read to tell the checkpoints apart.

    Raises:
        UsageError: there are fewer checkpoints than inputs.
        NothingMatched: a name matches nothing.
        InputRefused: a named file is no checkpoint.
        InputChanged: a file cannot be read.

    """
    reader = InputReader(report, opened)
    ours = any(is_flat(reported.role) for reported in report.inputs)
    candidates = find_candidates(names)
    found: dict[object, Checkpoint] = {}
    """By identity: a file that is named twice is one."""
    for done, candidate in enumerate(candidates):
        listener(Opening(done=done, total=len(candidates)))
        for checkpoint in _open(candidate, reader, output, ours=ours):
            found.setdefault(checkpoint.index.identity, checkpoint)
    files = [*found.values()]
    needed = sum(not is_flat(reported.role) for reported in report.inputs)  # a previous average may be gone
    if len(files) < needed:
        named, listed = plural(len(files), "checkpoint"), plural(needed, "input")
        hint = "name all of them, or the folder that contains them"
        raise UsageError(f"--input names {named}, but the report lists {listed}", hint=hint)
    matching = _Matching(reader=reader, inputs=report.inputs, files=files)
    matching.match(listener, contents=contents)
    return [matching.found(number) for number in range(len(report.inputs))]


def _open(candidate: Candidate, reader: InputReader, output: WrittenOutput, *, ours: bool) -> Iterator[Checkpoint]:
    """Yield a checkpoint, unless it is the output, another average, or a file of a folder that is no checkpoint."""
    try:
        checkpoint = marked(reader.open(candidate.path, flat=False))
    except (InputRefused, NothingMatched):
        if candidate.in_folder:
            return
        raise
    if not output.identity.isdisjoint(checkpoint.index.identity) or (checkpoint.made_by_us and not ours):
        return
    yield reader.open(candidate.path, flat=True) if checkpoint.has_our_metadata else checkpoint


@dataclass(slots=True, kw_only=True)
class _Matching:
    """Which of the files each input is."""

    reader: InputReader
    inputs: Sequence[Input]
    files: Sequence[Checkpoint]
    chosen: dict[int, int] = field(default_factory=dict)
    """The file of each input, by numbers."""
    digests: dict[tuple[int, frozenset[str] | None], str] = field(default_factory=dict)
    """Digests of the averaged tensors of a file, or of all its bytes (``None``)."""

    def match(self, listener: Listener, *, contents: bool) -> None:
        """Choose a file for each input, in the order of how much each rule proves."""
        self._match_fingerprints()
        self._match_digests(listener, contents=contents)
        self._match_names()
        self._match_places()

    def found(self, number: int) -> FoundInput:
        """Return an input with its file."""
        reported, averaged = self.inputs[number], self.reader.averaged(number)
        file = self.chosen.get(number)
        if file is None and is_flat(reported.role):
            return FoundInput(reported=reported, checkpoint=None, averaged=averaged, gone="not among the named inputs")
        if file is None:
            failure = f"none of the {plural(len(self.files), 'named checkpoint')} is {quoted(reported.path)}"
            return FoundInput(reported=reported, checkpoint=None, averaged=averaged, failure=failure)
        return FoundInput(
            reported=reported,
            checkpoint=self.files[file],
            averaged=averaged,
            named=True,
            sha256=self.digests.get((file, None)),
            content=self.digests.get((file, averaged)),
        )

    def _open_inputs(self) -> list[int]:
        return [number for number in range(len(self.inputs)) if number not in self.chosen]

    def _free(self) -> list[int]:
        taken = set(self.chosen.values())
        return [file for file in range(len(self.files)) if file not in taken]

    def _match_fingerprints(self) -> None:
        """Size, time and structure are equal, for one file only: it was moved, or copied with its time."""
        known = Counter(reported.fingerprint for reported in self.inputs)
        files = Counter(file.fingerprint for file in self.files)
        places = {file.fingerprint: number for number, file in enumerate(self.files)}
        for number, reported in enumerate(self.inputs):
            if known[reported.fingerprint] == files[reported.fingerprint] == 1:
                self.chosen[number] = places[reported.fingerprint]

    def _match_digests(self, listener: Listener, *, contents: bool) -> None:
        """The weights are equal, or all bytes, where the report has a digest of them."""
        wanted = {number: self._wanted(number, contents=contents) for number in self._open_inputs()}
        pairs = dict.fromkeys(
            (file, kind)
            for number, (kind, digest) in wanted.items()
            for file in self._free()
            if digest is not None and _is_alike(self.inputs[number], self.files[file])
        )
        count = Counted("hashing", sum(self._hashed_bytes(*pair) for pair in pairs), listener)
        for file, kind in pairs:
            index = self.files[file].index
            self.digests[file, kind] = (
                sha256_of_all(index.sources, count.add) if kind is None else digest_of(index, kind, count.add)
            )
        for number, (kind, digest) in wanted.items():
            same = (file for file in self._free() if digest is not None and self.digests.get((file, kind)) == digest)
            if (first := next(same, None)) is not None:
                self.chosen[number] = first

    def _wanted(self, number: int, *, contents: bool) -> tuple[frozenset[str] | None, str | None]:
        """Return which tensors the digest of an input covers, ``None`` for all bytes, and the digest, if it has one."""
        reported = self.inputs[number]
        if reported.sha256 is not None:
            return None, reported.sha256
        return self.reader.averaged(number), reported.content if contents else None

    def _hashed_bytes(self, file: int, kind: frozenset[str] | None) -> int:
        index = self.files[file].index
        return index.size() if kind is None else sum(one.nbytes for one in index.layouts if one.name in kind)

    def _match_names(self) -> None:
        """The end of the path is equal, for as many parts as for no other file."""
        for number in self._open_inputs():
            path = self.inputs[number].path
            common = {file: _common_parts(path, str(self.files[file].path)) for file in self._free()}
            most = max(common.values(), default=0)
            best = [file for file, parts in common.items() if parts == most]
            if most and len(best) == 1:
                self.chosen[number] = best[0]

    def _match_places(self) -> None:
        """What is left is in the same order, if there are as many of each: averages, and checkpoints."""
        for ours in (True, False):
            left = [number for number in self._open_inputs() if is_flat(self.inputs[number].role) == ours]
            free = [file for file in self._free() if self.files[file].made_by_us == ours]
            if len(left) == len(free):
                self.chosen.update(zip(left, free, strict=True))


def _is_alike(reported: Input, file: Checkpoint) -> bool:
    """Whether size and structure are equal: nothing else can be the same input."""
    return reported.bytes == file.index.size() and reported.fingerprint[-32:] == file.fingerprint[-32:]


def _common_parts(one: str, other: str) -> int:
    """Return how many parts at the end of two paths are equal. The query of a URL is no part of its name."""
    ends = ([*reversed(path.partition("?")[0].split("/"))] for path in (one, other))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))
