"""The options of the inputs: which checkpoints and tensors take part, and in which order."""

import re
import warnings
from typing import Literal

from ema_cli.errors import UsageError
from ema_cli.options.declaration import TextForm, option
from ema_cli.options.output_options import OutputOptions
from ema_cli.record import record
from ema_cli.storage.protocols import split_protocol
from ema_cli.text import quoted

Order = Literal["auto", "step", "name", "mtime", "given"]
OnMissing = Literal["error", "last"]


def _parse_steps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    from ema_cli.name_numbers import MOST_DIGITS  # noqa: PLC0415 - a help page reads no steps

    if not all(part.isdecimal() and len(part) <= MOST_DIGITS for part in parts):
        raise ValueError(text)
    return tuple(int(part) for part in parts)


_STEPS = TextForm(parse=_parse_steps, noun="a list of whole numbers, 0 or more", example="100,200,300")


@record
class InputOptions(OutputOptions):
    """What to average."""

    paths: tuple[str, ...]
    """Files, folders and glob patterns."""
    run: str | None = None
    """The folder that ``{run}`` and ``{name}`` in the output stand for; ``None`` for the one folder in ``paths``."""

    order: Order = option(
        "auto",
        help="How the checkpoints are ordered. auto: by step if every checkpoint has one, else by natural name order.",
        panel="Inputs",
        kept_on_continue=True,
        unstored=("auto", "step", "name"),
    )
    steps: tuple[int, ...] | None = option(
        None,
        help="The steps of the checkpoints, in the order of the arguments.",
        metavar="S,S,...",
        form=_STEPS,
        panel="Inputs",
    )
    from_step: int | None = option(
        None, flag="--from", help="Use checkpoints from a step on.", metavar="S", panel="Inputs"
    )
    to_step: int | None = option(None, flag="--to", help="Use checkpoints up to a step.", metavar="S", panel="Inputs")
    every: int = option(1, help="Use every K-th checkpoint, counted back from the last.", metavar="K", panel="Inputs")
    last: int | None = option(
        None,
        help="Use only the last K checkpoints.",
        brief="Use only the last K checkpoints.",
        metavar="K",
        panel="Inputs",
    )
    key: tuple[str, ...] = option(
        (),
        help="Dotted path to the weights in a nested checkpoint. Repeatable: several parts, each under its own prefix.",
        brief="Where the weights are in a nested file.",
        unset="found, and printed",
        metavar="A.B",
        panel="Inputs",
        in_fingerprint=True,
        kept_on_continue=True,
        single_is_bare=True,
    )
    include: tuple[str, ...] = option(
        (), help="Only tensors whose name matches. Repeatable.", metavar="REGEX", panel="Inputs", in_fingerprint=True
    )
    exclude: tuple[str, ...] = option(
        (), help="No tensors whose name matches. Repeatable.", metavar="REGEX", panel="Inputs", in_fingerprint=True
    )
    strip_prefix: str | None = option(
        None,
        help="Prefix to remove from every tensor name; '' for none.",
        unset="those of DDP, FSDP and torch.compile",
        metavar="P",
        panel="Inputs",
        in_fingerprint=True,
        kept_on_continue=True,
    )
    on_missing: OnMissing = option(
        "error",
        help="What to do if not all checkpoints have the same tensors. last: copy tensors that only the last one has, "
        "and drop those that it lacks.",
        panel="Inputs",
        in_fingerprint=True,
        kept_on_continue=True,
        unstored=("error",),
    )

    allow_remote: bool = option(
        False,
        help="Open the URLs that a report names; by default only those named on the command line.",
        panel="Inputs",
    )

    def check_inputs(self) -> None:
        """Raise if these options contradict each other.

        Raises:
            UsageError: naming the option.

        """
        if not self.paths:
            raise UsageError("no checkpoints were named", hint="ema-avg CKPT... --decay 0.9 -o ema.safetensors")
        if "" in self.paths:
            raise UsageError("a checkpoint path is empty", hint="is a shell variable not set?")
        for path in self.paths:
            split_protocol(path)
        for flag, value in (("--every", self.every), ("--last", self.last)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} must be at least 1")
        if min(self.steps or (), default=0) < 0:
            raise UsageError("--steps must be whole numbers, 0 or more", hint="--steps 100,200,300")
        if self.from_step is not None and self.to_step is not None and self.from_step > self.to_step:
            raise UsageError(f"--from {self.from_step} is after --to {self.to_step}")
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _check_pattern(flag, pattern)


def _check_pattern(flag: str, pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about patterns that a later Python will read differently
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        hint = f"{flag} '.*' finds any text: it is no shell pattern" if pattern.startswith("*") else ""
        raise UsageError(f"{flag} {quoted(pattern)} is not a regular expression: {error}", hint=hint) from error
