"""Check a written average against its report and its inputs.

Input -> output: the path of an output -> ``Verification``: one ``Check`` each for the report, the size, the digest, the
side files, the tensors, the method, every input, and random pieces recomputed from the inputs. A failed check does not
stop the others. The report is untrusted: its form is checked first, and the files it names are opened like any input.

    >>> from ema_cli.verify.checks import verify
    >>> verification = verify(Path("ema.safetensors"), samples=1000)
    >>> verification.ok, [check.message for check in verification.failures]
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.discovery.changes import check_unchanged
from ema_cli.errors import InputRefused, NothingMatched, UsageError, VerificationFailed
from ema_cli.events import Counted, Listener, ignore
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import DEFAULT_SAMPLES
from ema_cli.options.output_options import OUR_METADATA, UPDATED_BATCHES
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import load_report, report_path
from ema_cli.report.model import SCHEMA_VERSION, Average, BatchNormUpdate, Report, Tensor
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location
from ema_cli.text import HIDDEN, plural, quoted, safe_text, shortlist
from ema_cli.verify.inputs import FoundInput, check_input, open_inputs
from ema_cli.verify.named_inputs import match_inputs
from ema_cli.verify.output import Check, WrittenOutput, check_digest, check_side_files, check_size, open_written
from ema_cli.verify.samples import check_samples

_MOST_SAMPLES = 1_000_000
_MOST_DIFFERENCES = 3
_MOST_LINES = 24
"""Lines of one error."""
_INPUT_CHECKS = ("input", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All checks of an output."""

    output: Location
    checks: tuple[Check, ...]
    samples: int
    """Number of pieces recomputed."""
    seed: int

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

    def raise_if_failed(self) -> None:
        """Raise ``VerificationFailed`` with a line for each failed check, if any."""
        if self.ok:
            return
        lines = [f"  {check.name}: {check.message}" for check in self.failures[:_MOST_LINES]]
        if len(self.failures) > _MOST_LINES:
            lines.append(f"  and {len(self.failures) - _MOST_LINES:,} more (--json lists all)")
        hints = [check.hint for check in self.failures]
        only_inputs = all(check.name.startswith(_INPUT_CHECKS) for check in self.failures)
        again = "average again with --force: that writes the output and its report"
        hints.append("--output-only checks only the file and its report" if only_inputs else again)
        raise VerificationFailed(
            "\n".join([f"verification of {quoted(str(self.output))} failed:", *lines]),
            hint="; ".join(dict.fromkeys(part for hint in hints for part in hint.split("; ") if part)),
        )


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

    The report is untrusted. Local files that it lists are opened wherever they are; URLs only with ``allow_remote``.

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
        UsageError: ``samples`` is negative or too large; ``inputs`` are fewer than the report lists.
        NothingMatched: there is no such output; one of ``inputs`` is missing.
        InputRefused: the output is not a file that can be opened, or a folder without weights; one of ``inputs`` is no
            checkpoint; the report lists a URL with a protocol that is not opened.
        InputChanged: a file was changed while it was being read.

    """
    if not 0 <= samples <= _MOST_SAMPLES:
        raise UsageError(f"--samples {samples:,} must be from 0 to {_MOST_SAMPLES:,}")
    names = [os.fspath(name) for name in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    if names and output_only:
        raise UsageError("--output-only does not open the inputs that --input names", hint="leave out one of them")
    scope = _Scope(
        samples=None if output_only else samples,
        seed=seed,
        contents=not quick,
        names=tuple(names),
        allow_remote=allow_remote,
    )
    with ExitStack() as opened:
        file = open_written(output, opened)
        try:
            report = load_report(report_path(output))
        except (InputRefused, NothingMatched) as fault:
            checks, recomputed = [_failed("report", fault.message)], 0
        else:
            checks, recomputed = _check(file, report, opened, listener, scope)
        for source in file.sources.values():
            source.raise_if_changed()
    return Verification(output=output, checks=tuple(checks), samples=recomputed, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """What is checked."""

    samples: int | None
    """``None`` to leave the inputs alone."""
    seed: int
    contents: bool
    names: tuple[str, ...]
    allow_remote: bool


def _check(
    file: WrittenOutput, report: Report, opened: ExitStack, listener: Listener, scope: _Scope
) -> tuple[list[Check], int]:
    """Make all checks; return them with the number of pieces recomputed."""
    (average,) = report.averages
    written, refused = _open_output(file.path, opened)
    inputs = _inputs(file, report, opened, listener, scope)
    count = Counted("hashing", file.nbytes + sum(i.hashed_bytes(contents=scope.contents) for i in inputs), listener)
    checks = [
        _check_report(file, report, average),
        check_size(file, average.output),
        check_digest(file, average.output, count),
        *check_side_files(file.path, average.output.files),
        _check_tensors(written, average.tensors) if written else _failed("tensors", refused),
        *([_check_method(written, report, average)] if written else []),
    ]
    of_inputs = [check_input(number, one, count, contents=scope.contents) for number, one in enumerate(inputs, start=1)]
    checks += of_inputs
    if scope.samples is None:
        return checks, 0
    if written is None:
        return [*checks, _failed("samples", "nothing was recomputed: the output cannot be read")], 0
    shown = bool(scope.names) or all(check.ok for check in of_inputs)
    check, recomputed = check_samples(
        written, report, inputs, scope.samples, scope.seed, shown=shown, listener=listener
    )
    check_unchanged([found.checkpoint for found in inputs if found.checkpoint is not None], listener)
    return [*checks, check], recomputed


def _inputs(
    file: WrittenOutput, report: Report, opened: ExitStack, listener: Listener, scope: _Scope
) -> list[FoundInput]:
    """Return the inputs: those that the user named, else those at the paths in the report."""
    if scope.samples is None:
        return []
    if scope.names:
        return match_inputs(report, file, scope.names, opened, listener, contents=scope.contents)
    return open_inputs(report, file, opened, listener, allow_remote=scope.allow_remote)


def _failed(name: str, message: str) -> Check:
    return Check(name=name, ok=False, message=message)


def _open_output(path: Location, opened: ExitStack) -> tuple[Checkpoint | None, str]:
    """Return the output as a checkpoint, its names unchanged; ``None`` and the reason if it cannot be read."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool(), strip_prefix="")
    except InputRefused as refused:
        return None, refused.message
    opened.callback(checkpoint.index.close)
    return checkpoint, ""


def _check_report(file: WrittenOutput, report: Report, average: Average) -> Check:
    """Pass a readable report; the output may have been renamed together with it."""
    name = Path(average.output.path).name
    renamed = "" if name == file.path.name else f", written as {quoted(name)}"
    message = f"{quoted(report_path(file.path).name)} lists {plural(len(report.inputs), 'input')}{renamed}"
    if report.command.secrets_removed:
        message += f"; passwords and signatures were removed from it: addresses with {HIDDEN} are not whole"
    return Check(name="report", ok=True, message=message)


def _check_method(written: Checkpoint, report: Report, average: Average) -> Check:
    """Compare the method in the report with the metadata of the file."""
    if report.batch_norm is not None:
        return _check_update(written, report.batch_norm)
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
        return _failed("method", shortlist(differences, most=_MOST_DIFFERENCES))
    return Check(name="method", ok=True, message=f"{average.method.name}, as in the metadata of the file")


def _check_update(written: Checkpoint, update: BatchNormUpdate) -> Check:
    """Compare what the report says about recomputed BatchNorm statistics with the metadata of the file."""
    stored, batches = written.metadata.get(UPDATED_BATCHES), str(update.batches)
    if stored != batches:
        message = f"recomputed on {batches} batches, but {quoted(stored or 'missing')} in the metadata of the file"
        return _failed("method", message)
    return Check(name="method", ok=True, message=f"BatchNorm statistics of {quoted(update.data)}, batches: {batches}")


def _check_tensors(written: Checkpoint, reported: tuple[Tensor, ...]) -> Check:
    """Compare names, types and shapes with those of the report."""
    actual = {layout.name: (layout.dtype.name, layout.shape) for layout in written.index.layouts}
    expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in reported}
    differences = [f"{quoted(name)} is missing" for name in expected if name not in actual]
    differences += [f"{quoted(name)} is not in the report" for name in actual if name not in expected]
    differences += [
        f"{quoted(name)} is {_described(*actual[name])}, not {_described(*layout)}"
        for name, layout in expected.items()
        if name in actual and actual[name] != layout
    ]
    if differences:
        return _failed("tensors", shortlist(differences, most=_MOST_DIFFERENCES))
    return Check(name="tensors", ok=True, message=plural(len(actual), "tensor"))


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    return safe_text(f"{dtype} {shape}")


def verification_document(verification: Verification) -> dict[str, object]:
    """Return the document that ``ema-avg verify --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(verification.output),
        "ok": verification.ok,
        "checks": [dataclasses.asdict(check) for check in verification.checks],
        "samples": verification.samples,
        "seed": verification.seed,
    }
