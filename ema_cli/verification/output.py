"""The files of an output, one or the weights and the index of a folder, and the checks of them against the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.events import Counted
from ema_cli.options.output_options import OUR_METADATA, UPDATED_BATCHES
from ema_cli.record import record
from ema_cli.records.files import FileRole, is_weights
from ema_cli.records.reported_output import File, Output
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import report_path
from ema_cli.report.model import Average, BatchNormUpdate, Report, Tensor
from ema_cli.storage.digest import digest_of_all, sha256_of
from ema_cli.storage.locations import Location, exists, is_folder, names_in, open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import HIDDEN, plural, quoted, safe_text, shortlist

_MOST_FAULTS = 3
_MOST_DIFFERENCES = 3


@record
class Check:
    """One check of a verification, with its result."""

    name: str
    """``report``, ``size``, ``sha256``, ``companions``, ``tensors``, ``method``, ``input 1`` and so on, ``samples``."""
    ok: bool
    message: str
    """What was found; if the check failed, also what was expected."""
    hint: str = ""
    """What may help if the check failed, or to check more."""
    missing: str = ""
    """The path of an input that does not exist."""
    unchecked: str = ""
    """What this check had to leave out, though nothing is wrong, and why; empty if it is complete."""


@record
class WrittenOutput:
    """The open files that count for the size and the digest of an output."""

    path: Location
    sources: Mapping[str, ByteSource]
    """By file name."""

    @property
    def identity(self) -> frozenset[object]:
        """Identities of the files, to recognize them among the inputs."""
        return frozenset(source.identity for source in self.sources.values())

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(source.size() for source in self.sources.values())

    def is_newer_than(self, path: Location) -> bool:
        """Return whether a local output was modified after the local file ``path``."""
        try:
            modified_ns = path.stat().st_mtime_ns if isinstance(path, Path) else None
        except OSError:
            return False
        return modified_ns is not None and max(source.version for source in self.sources.values()) > modified_ns


def open_written(path: Location, opened: ExitStack, reported: Output | None = None) -> WrittenOutput:
    """Open an output until ``opened`` is closed: a file of any name, or the weights and the index in a folder.

    In a folder they are found by their names, and in one of another format by its report.

    Raises:
        NothingMatched: there is no such file or folder.
        InputRefused: the output cannot be opened, or has no weights.

    """
    files: dict[str, Location] = {path.name: path}
    if is_folder(path):
        try:
            names = {name for name in names_in(path) if is_weights(name)}
            files = {name: path / name for name in sorted(names | _listed_weights(path, reported))}
        except OSError as error:
            raise InputRefused(f"{quoted(str(path))} cannot be listed: {error.strerror}") from error
    if not files:
        raise InputRefused(f"{quoted(str(path))} is a folder without weights", hint="name an output of ema-avg")
    sources = {name: opened.enter_context(open_source(location)) for name, location in files.items()}
    return WrittenOutput(path=path, sources=sources)


def _listed_weights(folder: Location, reported: Output | None) -> set[str]:
    """Return the names of the files with weights that a report lists and that exist; none for safetensors."""
    if reported is None or reported.format == "safetensors":
        return set()
    return {file.name for file in reported.files if file.role != FileRole.SIDE_FILE and exists(folder / file.name)}


def failed(name: str, message: str) -> Check:
    """Return a check that failed."""
    return Check(name=name, ok=False, message=message)


def check_size(output: WrittenOutput, reported: Output) -> Check:
    """Compare the size of an output with its report."""
    same = output.nbytes == reported.bytes
    message = plural(output.nbytes, "byte") + ("" if same else f", but {reported.bytes:,} were written")
    return Check(name="size", ok=same, message=message)


def check_digest(output: WrittenOutput, reported: Output, count: Counted) -> Check:
    """Compare the digest of an output with its report; in a folder, name the files that differ.

    Raises:
        InputChanged: a file cannot be read to its end.

    """
    digests = {name: sha256_of(source, count.add) for name, source in output.sources.items()}
    digest = digest_of_all(digests)
    if digest == reported.sha256:
        return Check(name="sha256", ok=True, message=digest)
    expected = {file.name: file.sha256 for file in reported.files if file.role != FileRole.SIDE_FILE}
    names = sorted({*expected, *digests}) if expected else ()
    changed = [quoted(name) for name in names if expected.get(name) != digests.get(name)]
    where = f"; files that differ: {shortlist(changed)}" if changed else ""
    if output.is_newer_than(report_path(output.path)):
        where += f"; {quoted(output.path.name)} is newer than its report: changed, or of a run that wrote no report"
    return Check(name="sha256", ok=False, message=f"{digest}, but {quoted(reported.sha256)} was written{where}")


def check_side_files(folder: Location, files: Sequence[File]) -> Iterator[Check]:
    """Compare the side files in a folder with its report; no check if there are none."""
    side_files = [file for file in files if file.role == FileRole.SIDE_FILE]
    faults = [fault for fault in (_fault_of(folder / file.name, file) for file in side_files) if fault]
    message = shortlist(faults, most=_MOST_FAULTS) if faults else f"{plural(len(side_files), 'file')} unchanged"
    if side_files:
        yield Check(name="companions", ok=not faults, message=message)


def _fault_of(path: Location, reported: File) -> str:
    """Return how a file differs from the report; empty if it is unchanged."""
    try:
        with open_source(path) as source:
            same = source.size() == reported.bytes and sha256_of(source) == reported.sha256
    except (InputRefused, NothingMatched) as error:
        return error.message
    return "" if same else f"{quoted(reported.name)} was changed"


def check_report(file: WrittenOutput, report: Report, average: Average) -> Check:
    """Pass a readable report; the output may have been renamed together with it."""
    name = Path(average.output.path).name
    renamed = "" if name == file.path.name else f", written as {quoted(name)}"
    message = f"{quoted(report_path(file.path).name)} lists {plural(len(report.inputs), 'input')}{renamed}"
    if report.command.secrets_removed:
        message += f"; passwords and signatures were removed from it: addresses with {HIDDEN} are not whole"
    return Check(name="report", ok=True, message=message)


def check_method(written: Checkpoint, report: Report, average: Average) -> Check:
    """Compare the method in the report with the metadata of the file."""
    if report.batch_norm is not None:
        return _check_update(written, report.batch_norm)
    if average.output.format != "safetensors":
        message = f"{average.method.name}, by the report alone: --format {average.output.format} has no metadata"
        return Check(name="method", ok=True, message=message)
    reported: dict[str, object] = dict(dataclasses.asdict(average.method))
    reported["method"] = reported.pop("name")
    reported["last_step"] = report.inputs[-1].step if report.inputs else None
    reported["checkpoints"] = len(average.diagnostics.implied_lr)
    stored = {key: written.metadata.get(f"{OUR_METADATA}{key}") for key in reported}
    differences = [
        f"{key} is {quoted(str(value))}, but {quoted(stored[key] or 'missing')} in the metadata of the file"
        for key, value in reported.items()
        if (None if value is None else str(value)) != stored[key] and not (key == "last_step" and stored[key] is None)
    ]
    if differences:
        return failed("method", shortlist(differences, most=_MOST_DIFFERENCES))
    return Check(name="method", ok=True, message=f"{average.method.name}, as in the metadata of the file")


def _check_update(written: Checkpoint, update: BatchNormUpdate) -> Check:
    """Compare what the report says about recomputed BatchNorm statistics with the metadata of the file."""
    stored, batches = written.metadata.get(UPDATED_BATCHES), str(update.batches)
    if stored != batches:
        message = f"recomputed on {batches} batches, but {quoted(stored or 'missing')} in the metadata of the file"
        return failed("method", message)
    return Check(name="method", ok=True, message=f"BatchNorm statistics of {quoted(update.data)}, batches: {batches}")


def check_tensors(written: Checkpoint, reported: tuple[Tensor, ...], *, has_others: bool = False) -> Check:
    """Compare names, types and shapes with those of the report; a copy of a checkpoint may have other tensors, too."""
    actual = {layout.name: (layout.dtype.name, layout.shape) for layout in written.index.layouts}
    expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in reported}
    differences = [f"{quoted(name)} is missing" for name in expected if name not in actual]
    others = [quoted(name) for name in actual if name not in expected]
    differences += [] if has_others else [f"{name} is not in the report" for name in others]
    differences += [
        f"{quoted(name)} is {_described(*actual[name])}, not {_described(*layout)}"
        for name, layout in expected.items()
        if name in actual and actual[name] != layout
    ]
    if differences:
        return failed("tensors", shortlist(differences, most=_MOST_DIFFERENCES))
    more = f", and {plural(len(others), 'other')} of the last checkpoint" if others else ""
    return Check(name="tensors", ok=True, message=plural(len(expected), "tensor") + more)


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    return safe_text(f"{dtype} {shape}")
