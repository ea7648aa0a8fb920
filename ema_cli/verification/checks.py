"""Check a written average against its report and its inputs.

Input -> output: the path of an output -> ``Verification``: one ``Check`` each for the report, the size, the digest, the
side files, the tensors, the method, every input, and random pieces recomputed from the inputs. A failed check does not
stop the others. The report is untrusted: its form is checked first, and the files it names are opened like any input.

    >>> from ema_cli.verification.checks import verify
    >>> verification = verify(Path("ema.safetensors"), samples=1000)
    >>> verification.ok, [check.message for check in verification.failures]
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

from ema_cli.discovery.changes import check_unchanged
from ema_cli.errors import InputRefused, NothingMatched, UsageError, VerificationFailed
from ema_cli.events import Counted, Listener, ignore
from ema_cli.options.average import DEFAULT_SAMPLES
from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import load_report, report_path
from ema_cli.report.model import SCHEMA_VERSION, Report
from ema_cli.storage.locations import Location
from ema_cli.text import plural, quoted, shortlist
from ema_cli.verification.copied_bytes import CopyScope, check_copied_bytes
from ema_cli.verification.input_reader import InputReader
from ema_cli.verification.inputs import FoundInput, check_input, open_inputs
from ema_cli.verification.named_inputs import match_inputs
from ema_cli.verification.output import (
    Check,
    WrittenOutput,
    check_digest,
    check_method,
    check_report,
    check_side_files,
    check_size,
    check_tensors,
    failed,
    open_written,
)
from ema_cli.verification.samples import check_samples

_MOST_SAMPLES = 1_000_000
_SUFFIXES_OF_OTHERS = (".pt", ".pth", ".ckpt", ".bin", ".tar")
_MOST_NAMES = 3
_MOST_LINES = 24
"""Lines of one error."""
_INPUT_CHECKS = ("input", "samples")


@record
class Verification:
    """All checks of an output."""

    output: Location
    checks: tuple[Check, ...]
    samples: int
    """Number of pieces recomputed."""
    seed: int
    skipped: tuple[str, ...] = ()
    """What the options left out."""
    in_python: bool = False
    """Messages name keywords, not flags."""

    def __repr__(self) -> str:
        name = quoted(str(self.output))
        if self.ok:
            return f"<Verification: {name} passed {plural(len(self.checks), 'check')}>"
        failed = shortlist(check.name for check in self.failures)
        return f"<Verification: {name} failed {len(self.failures):,} of {plural(len(self.checks), 'check')}: {failed}>"

    def __bool__(self) -> bool:
        return self.ok

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return not self.failures

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What was not checked, and why: left out by the options, or no longer possible."""
        return (*self.skipped, *(check.unchecked for check in self.checks if check.unchecked))

    @property
    def complete(self) -> bool:
        """Whether every check was made in full, on all inputs and on the pieces that were drawn."""
        return not self.unchecked

    def raise_if_failed(self) -> None:
        """Raise ``VerificationFailed`` with a line for each failed check, if any, and one for all missing inputs."""
        if self.ok:
            return
        lines = [*self._missing(), *(f"{one.name}: {one.message}" for one in self.failures if not one.missing)]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"and {len(lines) - _MOST_LINES:,} more (--json lists all)"]
        hints = [check.hint for check in self.failures]
        only_inputs = all(check.name.startswith(_INPUT_CHECKS) for check in self.failures)
        again = "average again with --force: that writes the output and its report"
        hints.append("--output-only checks only the file and its report" if only_inputs else again)
        with keywords_in_errors() if self.in_python else nullcontext():
            raise VerificationFailed(
                "\n  ".join([f"verification of {quoted(str(self.output))} failed:", *lines]),
                hint="; ".join(dict.fromkeys(part for hint in hints for part in hint.split("; ") if part)),
            )

    def _missing(self) -> Iterator[str]:
        """Yield one line about all missing inputs, if there are any."""
        missing = [quoted(check.missing) for check in self.checks if check.missing]
        if missing:
            inputs = plural(sum(check.name.startswith("input") for check in self.checks), "input")
            are = "is" if len(missing) == 1 else "are"
            yield f"{len(missing):,} of {inputs} {are} missing: {shortlist(missing, most=_MOST_NAMES)}"


def verify(
    output: Location,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    quick: bool = False,
    output_only: bool = False,
    inputs: Sequence[str | os.PathLike[str]] = (),
    allow_remote: bool = False,
    listener: Listener = ignore,
) -> Verification:
    """Check an output, its report and its inputs.

    A previous average that was continued, and replaced since, is left out, with what would be recomputed from it. The
    report is untrusted. Local files that it lists are opened wherever they are; URLs only with ``allow_remote``.

    Args:
        output: a file or folder that this program wrote, with its report beside it.
        samples: number of pieces of tensors to recompute.
        seed: selects the pieces.
        quick: do not read all weights of the inputs to compare their digests.
        output_only: do not open the inputs, and recompute nothing.
        inputs: files, folders, patterns and URLs that are the inputs now, in any order; empty for the paths in the
            report.
        allow_remote: open the URLs in the report.
        listener: receives the progress.

    Raises:
        UsageError: ``output`` is a report; ``samples`` is negative or too large; ``inputs`` are fewer than the report
            lists.
        NothingMatched: there is no such output; one of ``inputs`` is missing.
        InputRefused: the output is not a file that can be opened, or a folder without weights; one of ``inputs`` is no
            checkpoint; the report lists a URL with a protocol that is not opened.
        InputChanged: a file was changed while it was being read.

    """
    if not 0 <= samples <= _MOST_SAMPLES:
        raise UsageError(f"--samples {samples:,} must be from 0 to {_MOST_SAMPLES:,}")
    names = [os.fspath(name) for name in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    if names and output_only:
        raise UsageError("--output-only and --input contradict each other", hint="leave out one of them")
    scope = _Scope(
        samples=None if output_only else samples,
        seed=seed,
        contents=not quick,
        names=tuple(names),
        allow_remote=allow_remote,
    )
    if output.name.endswith(".report.json"):
        raise UsageError(f"{quoted(str(output))} is a report, not an output", hint="ema-avg verify OUT")
    with ExitStack() as opened:
        report = _read_report(output)
        reported = report.averages[0].output if isinstance(report, Report) else None
        file = open_written(output, opened, reported)
        if isinstance(report, Report):
            checks, recomputed = _check(file, report, opened, listener, scope)
        else:
            checks, recomputed = [report], 0
        for source in file.sources.values():
            source.raise_if_changed()
    return Verification(
        output=output, checks=tuple(checks), samples=recomputed, seed=seed, skipped=tuple(scope.skipped())
    )


def _read_report(output: Location) -> Report | Check:
    """Return the report of an output, or the failed check."""
    try:
        return load_report(report_path(output))
    except (InputRefused, NothingMatched) as fault:
        other = output.suffix in _SUFFIXES_OF_OTHERS
        hint = "name an output of ema-avg, not a checkpoint" if other else ""
        return replace(failed("report", fault.message), hint=hint)


@record
class _Scope:
    """What is checked."""

    samples: int | None
    """``None`` to leave the inputs alone."""
    seed: int
    contents: bool
    names: tuple[str, ...]
    allow_remote: bool

    def skipped(self) -> Iterator[str]:
        """Yield what is left out."""
        if self.samples is None:
            yield "the inputs (--output-only)"
            return
        if not self.contents:
            yield "the weights of the inputs (--quick)"
        if not self.samples:
            yield "recomputed pieces (--samples 0)"


def _check(
    file: WrittenOutput, report: Report, opened: ExitStack, listener: Listener, scope: _Scope
) -> tuple[list[Check], int]:
    """Make all checks; return them with the number of pieces recomputed."""
    (average,) = report.averages
    written, refused = _open_output(file.path, report, opened)
    is_copy = average.output.format == "same"
    inputs = _inputs(file, report, opened, listener, scope)
    count = Counted("hashing", file.nbytes + sum(i.hashed_bytes(contents=scope.contents) for i in inputs), listener)
    checks = [
        check_report(file, report, average),
        check_size(file, average.output),
        check_digest(file, average.output, count),
        *check_side_files(file.path, average.output.files),
        check_tensors(written, average.tensors, has_others=is_copy) if written else failed("tensors", refused),
        *([check_method(written, report, average)] if written else []),
    ]
    of_inputs = [check_input(number, one, count, contents=scope.contents) for number, one in enumerate(inputs, start=1)]
    checks += of_inputs
    if scope.samples is None:
        return checks, 0
    if written is None:
        return [*checks, failed("samples", "nothing was recomputed: the output cannot be read")], 0
    usable = [
        replace(found, checkpoint=None) if check.unchecked else found
        for found, check in zip(inputs, of_inputs, strict=True)
    ]
    shown = bool(scope.names) or all(check.ok for check in of_inputs)
    check, recomputed = check_samples(
        written, report, usable, scope.samples, scope.seed, shown=shown, listener=listener
    )
    copied = [_check_copy(file, report, usable[-1], opened, listener, scope=scope)] if is_copy else []
    check_unchanged([found.checkpoint for found in inputs if found.checkpoint is not None], listener)
    return [*checks, check, *copied], recomputed


def _check_copy(
    file: WrittenOutput, report: Report, last: FoundInput, opened: ExitStack, listener: Listener, *, scope: _Scope
) -> Check:
    """Compare what is not averaged with the last checkpoint, if that is there."""
    if last.checkpoint is None:
        missing = f"the bytes that are not averaged (they need input {len(report.inputs):,})"
        return Check(name="copied", ok=True, message="nothing compared", unchecked=missing)
    extent = CopyScope(samples=None if scope.contents else scope.samples, seed=scope.seed)
    return check_copied_bytes(file, report, last.checkpoint, opened, listener, scope=extent)


def _inputs(
    file: WrittenOutput, report: Report, opened: ExitStack, listener: Listener, scope: _Scope
) -> list[FoundInput]:
    """Return the inputs: those that the user named, else those at the paths in the report."""
    if scope.samples is None:
        return []
    if scope.names:
        return match_inputs(report, file, scope.names, opened, listener, contents=scope.contents)
    return open_inputs(report, file, opened, listener, allow_remote=scope.allow_remote)


def _open_output(path: Location, report: Report, opened: ExitStack) -> tuple[Checkpoint | None, str]:
    """Return the output as a checkpoint; ``None`` and the reason if it cannot be read.

    A copy of the last checkpoint is opened like the inputs, by the key and prefix of the run; in other outputs the
    names are final.
    """
    is_copy = report.averages[0].output.format == "same"
    try:
        return InputReader(report, opened).open(path, flat=not is_copy), ""
    except InputRefused as refused:
        return None, refused.message


def verification_document(verification: Verification) -> dict[str, object]:
    """Return the document that ``ema-avg verify --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(verification.output),
        "ok": verification.ok,
        "complete": verification.complete,
        "unchecked": list(verification.unchecked),
        "checks": [dataclasses.asdict(check) for check in verification.checks],
        "samples": verification.samples,
        "seed": verification.seed,
    }
