"""Check a written average against its report and its inputs.

Input -> output: the path of an output -> ``Verification``: one ``Check`` for the report, the size, the digest, the
tensors, every input, and a random sample of the elements, recomputed. All checks are made, whatever the others found.
A report is trusted in nothing: it is checked for its form first, and the files that it names are opened as any input.

    >>> from ema_cli.verify.checks import verify
    >>> found = verify(Path("ema.safetensors"), samples=1000)
    >>> found.ok, [check.message for check in found.failures]
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ema_cli.discovery.changes import check_unchanged
from ema_cli.errors import InputRefused, NothingMatched, UsageError, VerificationFailed
from ema_cli.events import Counted, Listener, ignore
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import DEFAULT_SAMPLES
from ema_cli.options.output import OUR_METADATA
from ema_cli.records.series import Checkpoint
from ema_cli.report.beside import load_report, report_path
from ema_cli.report.model import SCHEMA_VERSION, Average, Report, Tensor
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.storage.locations import Location
from ema_cli.text import plural, quoted, safe_text, shortlist
from ema_cli.verify.inputs import check_input, open_inputs
from ema_cli.verify.output import Check, WrittenOutput, check_companions, check_digest, check_size
from ema_cli.verify.samples import Sampled, check_samples

_MOST_SAMPLES = 1_000_000
_MOST_DIFFERENCES = 3
_MOST_LINES = 24
"""Of one error."""
_ABOUT_INPUTS = ("input", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found."""

    output: Location
    checks: tuple[Check, ...]
    samples: int
    """Pieces that were recomputed."""
    seed: int

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Raise ``VerificationFailed`` with all that is wrong, if anything is."""
        if self.ok:
            return
        lines = [f"  {check.name}: {check.message}" for check in self.failures[:_MOST_LINES]]
        if len(self.failures) > _MOST_LINES:
            lines.append(f"  and {len(self.failures) - _MOST_LINES:,} more (--json tells all)")
        only_inputs = all(check.name.startswith(_ABOUT_INPUTS) for check in self.failures)
        raise VerificationFailed(
            "\n".join([f"{quoted(str(self.output))} could not be verified:", *lines]),
            hint="--output-only checks the file and its report alone" if only_inputs else "",
        )


def verify(
    output: Location,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    quick: bool = False,
    output_only: bool = False,
    listener: Listener = ignore,
) -> Verification:
    """Check an output, its report and its inputs.

    Args:
        output: a file or a folder that this program wrote, with its report beside it.
        samples: how many pieces of tensors are recomputed.
        seed: which ones.
        quick: do not read the inputs whole to compare the digests of their weights.
        output_only: leave the inputs alone, and recompute nothing.
        listener: told of the progress.

    Raises:
        UsageError: ``samples`` is not a number of samples.
        NothingMatched: there is no such output.
        InputRefused: it is not a file that can be opened, or a folder without weights.
        InputChanged: a file was changed while it was being read.

    """
    if not 0 <= samples <= _MOST_SAMPLES:
        raise UsageError(f"--samples {samples:,} must be from 0 to {_MOST_SAMPLES:,}")
    with ExitStack() as opened:
        file = opened.enter_context(WrittenOutput(output))
        try:
            report = load_report(report_path(output))
        except (InputRefused, NothingMatched) as fault:
            checks, recomputed = [_failed("report", fault.message)], 0
        else:
            sampled = None if output_only else (samples, seed)
            checks, recomputed = _check(file, report, opened, listener, sampled, contents=not quick)
        file.raise_if_changed()
    return Verification(output=output, checks=tuple(checks), samples=recomputed, seed=seed)


def _check(
    file: WrittenOutput,
    report: Report,
    opened: ExitStack,
    listener: Listener,
    sampled: tuple[int, int] | None,
    *,
    contents: bool,
) -> tuple[list[Check], int]:
    """Make every check; return them, and how many pieces were recomputed."""
    (average,) = report.averages
    found, refused = _open_output(file.path, opened)
    inputs = open_inputs(report, file, opened, listener) if sampled is not None else []
    count = Counted("hashing", file.size() + sum(one.hashed_bytes(contents=contents) for one in inputs), listener)
    checks = [
        _check_report(file, report, average),
        check_size(file, average.output),
        check_digest(file, average.output, count),
        *check_companions(file.path, average.output.files),
        _check_tensors(found, average.tensors) if found else _failed("tensors", refused),
        *([_check_method(found, report, average)] if found else []),
        *(check_input(number, one, count, contents=contents) for number, one in enumerate(inputs, start=1)),
    ]
    if sampled is None:
        return checks, 0
    if found is None:
        return [*checks, _failed("samples", "nothing was recomputed: the output cannot be read")], 0
    result: Sampled = check_samples(found, report, inputs, *sampled, listener=listener)
    check_unchanged([one.checkpoint for one in inputs if one.checkpoint is not None], listener)
    return [*checks, result.check], result.recomputed


def _failed(name: str, message: str) -> Check:
    return Check(name=name, ok=False, message=message)


def _open_output(path: Location, opened: ExitStack) -> tuple[Checkpoint | None, str]:
    """Return the output as a checkpoint, under the names that it has; else why it cannot be read."""
    try:
        found = open_checkpoint(path, pool=LayoutPool(), strip_prefix="")
    except InputRefused as refused:
        return None, refused.message
    opened.callback(found.index.close)
    return found, ""


def _check_report(file: WrittenOutput, report: Report, average: Average) -> Check:
    """Pass a report that could be read; a file that was renamed together with it is still the same file."""
    name = Path(average.output.path).name
    renamed = "" if name == file.path.name else f", written as {quoted(name)}"
    message = f"{quoted(report_path(file.path).name)} tells of {plural(len(report.inputs), 'input')}{renamed}"
    return Check(name="report", ok=True, message=message)


def _check_method(found: Checkpoint, report: Report, average: Average) -> Check:
    """Compare what the report says of the average with what the file itself says."""
    told: dict[str, object] = dict(dataclasses.asdict(average.method))
    told["method"] = told.pop("name")
    told["last_step"] = report.inputs[-1].step if report.inputs else None
    told["checkpoints"] = len(average.diagnostics.implied_lr)
    own = {key: found.metadata.get(f"{OUR_METADATA}{key}") for key in told}
    wrong = [
        f"{key} {quoted(str(value))}, but the file says {quoted(own[key] or 'nothing')}"
        for key, value in told.items()
        if (None if value is None else str(value)) != own[key] and not (key == "last_step" and own[key] is None)
    ]
    if wrong:
        return _failed("method", shortlist(wrong, most=_MOST_DIFFERENCES))
    return Check(name="method", ok=True, message=f"{average.method.name}, as the file says itself")


def _check_tensors(found: Checkpoint, told: tuple[Tensor, ...]) -> Check:
    """Compare names, types and shapes with those of the report."""
    here = {layout.name: _layout(layout) for layout in found.index.layouts}
    there = {tensor.name: (tensor.dtype, tensor.shape) for tensor in told}
    differences = [f"{quoted(name)} is missing" for name in there if name not in here]
    differences += [f"{quoted(name)} is not in the report" for name in here if name not in there]
    differences += [
        f"{quoted(name)} is {_words(here[name])}, not {_words(expected)}"
        for name, expected in there.items()
        if name in here and here[name] != expected
    ]
    if differences:
        return _failed("tensors", shortlist(differences, most=_MOST_DIFFERENCES))
    return Check(name="tensors", ok=True, message=plural(len(here), "tensor"))


def _layout(layout: TensorLayout) -> tuple[str, tuple[int, ...]]:
    return layout.dtype.name, layout.shape


def _words(what: tuple[str, tuple[int, ...]]) -> str:
    dtype, shape = what
    return safe_text(f"{dtype} {shape}")


def verification_document(found: Verification) -> dict[str, object]:
    """Return what ``ema-avg verify --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(found.output),
        "ok": found.ok,
        "checks": [dataclasses.asdict(check) for check in found.checks],
        "samples": found.samples,
        "seed": found.seed,
    }
