"""A previous average that is continued: the checkpoints that its metadata list, and whether the options match it.

The metadata are untrusted, like all files; contradictions are refused.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.own_outputs import output_without_metadata
from ema_cli.naming import distinct_names
from ema_cli.options.average import Options
from ema_cli.options.output_options import OUR_METADATA, UPDATED_BATCHES
from ema_cli.options.stored_method import read_method
from ema_cli.record import record
from ema_cli.records.live_snapshot import FROM_SNAPSHOT, read_snapshot
from ema_cli.records.series import Checkpoint, Folded
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, absolute
from ema_cli.text import quoted, safe_text, without_secrets
from ema_cli.weights.methods import Method
from ema_cli.weights.timeline import Timeline

_LARGEST_STEP = 1 << 62


@record
class PreviousAverage:
    """A previous average and its metadata."""

    checkpoint: Checkpoint
    method: Method
    folded: tuple[Folded, ...]
    """The checkpoints inside, in fold order."""
    unit: str
    """Unit of the steps."""
    lacking: frozenset[str] = frozenset()
    """Tensors that were copied, because some checkpoint inside lacks them."""

    @property
    def known_names(self) -> tuple[Folded, ...]:
        """The checkpoints inside whose names help to read those of new ones; the name of a snapshot does not."""
        return self.folded[1:] if self.from_snapshot else self.folded

    @property
    def from_snapshot(self) -> bool:
        """Whether the first checkpoint inside is a snapshot of a live EMA."""
        return self.checkpoint.is_snapshot or FROM_SNAPSHOT in self.checkpoint.metadata

    @property
    def name(self) -> str:
        """Its path, quoted for messages."""
        return quoted(str(self.checkpoint.path))

    @property
    def last(self) -> Folded:
        """The last checkpoint inside."""
        return self.folded[-1]

    def step_or_name(self, checkpoint: Folded) -> str:
        """Return the step of a checkpoint inside, or its name if it has none, for messages."""
        return quoted(checkpoint.name) if checkpoint.step is None else f"{self.unit} {checkpoint.step:,}"


def open_previous(path: Location, options: Options) -> PreviousAverage:
    """Open a previous average; its file stays open for the fold.

    Raises:
        UsageError: it was made with another method or with other options.
        InputRefused: it is not an output of this program, or cannot be continued.
        NothingMatched: there is no such file.

    """
    _refuse_output_without_metadata(path)
    checkpoint = open_checkpoint(path, pool=LayoutPool(), strip_prefix="")  # outputs have clean names
    try:
        previous = _read_metadata(checkpoint)
        _refuse_another_method(previous, options)
        _refuse_other_options(previous, options)
    except BaseException:
        checkpoint.index.close()
        raise
    return previous


def _refuse_output_without_metadata(path: Location) -> None:
    output = output_without_metadata(path)
    if output is not None:
        raise InputRefused(
            f"{quoted(str(path))} was written with --format {output.format}, which has no room for metadata: it does "
            "not list the checkpoints inside, and cannot be continued",
            hint="continue an average that was written as .safetensors, or average all checkpoints at once",
        )


def _read_metadata(checkpoint: Checkpoint) -> PreviousAverage:
    path = quoted(str(checkpoint.path))
    ours = {
        key.removeprefix(OUR_METADATA): value
        for key, value in checkpoint.metadata.items()
        if key.startswith(OUR_METADATA)
    }
    if UPDATED_BATCHES in checkpoint.metadata and ours.get("buffers") != "last":
        raise InputRefused(
            f"the BatchNorm statistics of {path} were recomputed, and are no average that can be continued",
            hint="continue the average that update-bn has read, or average all checkpoints at once",
        )
    if checkpoint.is_snapshot:
        return _live_average(checkpoint)
    if not checkpoint.made_by_us:
        raise InputRefused(f"{path} is not an output of ema-avg", hint="--continue-from takes an output of ema-avg")
    if ours.get("method") == "manual":
        raise InputRefused(
            f"{path} was made with --weights, which cannot be continued: new checkpoints have no weights",
            hint="give the weights of all checkpoints at once",
        )
    if "lora" in ours:
        raise InputRefused(
            f"{path} was made with --lora {quoted(ours['lora'])}, which cannot be continued: its rank would grow",
            hint="average all checkpoints at once, without --continue-from",
        )
    try:
        unit = ours.get("step_unit", "checkpoint")
        return PreviousAverage(
            checkpoint=checkpoint, method=read_method(ours), folded=_folded(ours), unit=unit, lacking=_lacking(ours)
        )
    except (KeyError, ValueError, TypeError, RecursionError, EmaAvgError) as error:
        raise InputRefused(
            f"the metadata of {path} do not list its checkpoints correctly",
            hint="it was changed, or made by an older version: average all checkpoints at once",
        ) from error


def _live_average(checkpoint: Checkpoint) -> PreviousAverage:
    """Return a snapshot of a live EMA as an average of one checkpoint: itself, at the step of its last update.

    Between checkpoints the model is not known, so it is continued by ``ema-hold``: ``E = d^gap E + (1 - d^gap) theta``.
    """
    path = quoted(str(checkpoint.path))
    snapshot = read_snapshot(checkpoint.path, checkpoint.metadata)
    method = snapshot.method
    if (method.name, method.init) != ("ema", "first"):
        raise InputRefused(
            f"{path} is a snapshot of a live average by {method.label}, which checkpoints cannot continue: only the "
            "decay of an EMA without warm-up and bias correction stays the same",
            hint="average the snapshots by themselves: name their folder",
        )
    name = distinct_names([absolute(checkpoint.path)])[0]
    return PreviousAverage(
        checkpoint=checkpoint,
        method=replace(method, name="ema-hold", per="step"),
        folded=(Folded(name=name, step=snapshot.last_step),),
        unit="step",
    )


def _folded(ours: Mapping[str, str]) -> tuple[Folded, ...]:
    names = json.loads(ours["folded"])
    if not names or not all(_is_name(name) for name in names):
        raise ValueError("names")
    steps: list[int | None] = [None] * len(names)
    if "steps" in ours:
        steps = [int(step) for step in ours["steps"].split(",")]
        if Timeline.of(steps, "step").steps is None or not 0 <= (steps[0] or 0) <= (steps[-1] or 0) < _LARGEST_STEP:
            raise ValueError("steps")
    return tuple(Folded(name=without_secrets(name), step=step) for name, step in zip(names, steps, strict=True))


def _lacking(ours: Mapping[str, str]) -> frozenset[str]:
    names = json.loads(ours.get("lacking", "[]"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("lacking")
    return frozenset(names)


def _is_name(name: object) -> bool:
    """Whether a name can be the end of a path, and does not lead out of its folder."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _refuse_another_method(previous: PreviousAverage, options: Options) -> None:
    if not options.chooses_weights:
        return
    decay = previous.method.decay
    completed = options
    if options.lacks_decay and decay is not None:  # the decay of the file is used
        completed = replace(options, continue_from=None, output=None, one_minus_decay=(decay.complement,))
    asked = None if completed.lacks_decay else completed.expand()[0]
    if asked is None or not asked.same_as(previous.method):
        verb = "is continued with" if previous.checkpoint.is_snapshot else "was made with"
        raise UsageError(
            f"{previous.name} {verb} {_flags(previous.method, asked)}, and can only be continued in the same way",
            hint="leave out the weighting options, or average all checkpoints at once",
        )


def _flags(method: Method, asked: Method | None) -> str:
    """Return the method as flags, with those of its parameters that differ from ``asked``."""
    other = asked.plain() if asked is not None else {}
    differing = {
        key: value
        for key, value in method.plain().items()
        if value is not None and value != other.get(key) and key not in ("name", "one_minus_decay")
    }
    words = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in differing.items())
    return f"--method {method.name} {words}".rstrip()


def _refuse_other_options(previous: PreviousAverage, options: Options) -> None:
    for key, now in options.kept_on_continue().items():
        if previous.checkpoint.is_snapshot and key != "lora":  # the first checkpoints to choose these options for
            continue
        then = previous.checkpoint.metadata.get(f"{OUR_METADATA}{key}")
        if then != now:
            flag = f"--{key.replace('_', '-')}"
            values = _values(then)
            made = " ".join(f"{flag} {quoted(value)}" for value in values)
            hint = f"{flag} {shlex.quote(safe_text(values[0]))}" if values else f"leave out {flag}"
            raise UsageError(
                f"{previous.name} was made {f'with {made}' if values else f'without {flag}'}, and can only be "
                "continued in the same way",
                hint=made if len(values) > 1 else hint,
            )


def _values(stored: str | None) -> list[str]:
    """Return the values of an option as metadata store them: several are a list in JSON."""
    if stored is None or not stored.startswith("["):
        return [] if stored is None else [stored]
    try:
        values = json.loads(stored)
    except (ValueError, RecursionError):
        return [stored]
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else [stored]
