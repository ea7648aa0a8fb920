"""Every option of an average, checked for contradictions before anything is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ema_cli.errors import UsageError
from ema_cli.naming import OUTPUT_FIELDS
from ema_cli.text import is_writable_text, quoted

Order = Literal["auto", "step", "name", "mtime", "given"]
MethodName = Literal["ema", "uniform"]
Init = Literal["first", "debias"]
BufferPolicy = Literal["average", "last", "first"]

OUTPUT_DTYPES = ("same", "float32", "bfloat16", "float16", "float64")
OUR_METADATA = "ema_avg."
"""Prefix of the metadata keys that this program writes."""
LONGEST_HALF_LIFE = 1e15
"""Beyond it the decay cannot be told from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to average, how, and where to. Every field but ``paths`` has the default of the command line."""

    paths: tuple[str, ...]
    """Files, folders and glob patterns."""

    order: Order = "auto"
    """``auto``: by step if every checkpoint has one, else by natural name order."""
    steps: tuple[int, ...] | None = None
    """Steps by hand, in the order of ``paths``."""
    from_step: int | None = None
    """Leave out checkpoints before this step."""
    to_step: int | None = None
    """Leave out checkpoints after this step."""
    every: int = 1
    """Keep every K-th checkpoint, counted back from the last."""
    last: int | None = None
    """Keep the last K checkpoints."""
    key: str | None = None
    """Dotted path to the weights in a nested checkpoint; ``None`` to find them."""
    include: tuple[str, ...] = ()
    """Regular expressions: only tensors whose name one of them finds."""
    exclude: tuple[str, ...] = ()
    """Regular expressions: no tensors whose name one of them finds."""
    strip_prefix: str | None = None
    """Prefix of the names to take off; ``None`` for those of known wrappers."""

    method: MethodName = "ema"
    decays: tuple[float, ...] = ()
    """d in [0, 1), one average each."""
    half_lives: tuple[float, ...] = ()
    """Checkpoints after which a share has halved; one average each, instead of ``decays``."""
    init: Init = "first"
    """``first``: E_1 = theta_1; ``debias``: start at zero and divide by the weight gathered."""

    buffers: BufferPolicy = "average"
    """What happens to BatchNorm statistics."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1`` or ``auto``."""
    dtype: str = "same"
    """Element type of averaged tensors in the output; ``same`` as in the last checkpoint."""
    threads: int | None = None
    """Worker threads; ``None`` for the cores, at most 4."""
    max_memory: int | None = None
    """Bound on the buffers of the fold, in bytes."""
    allow_nonfinite: bool = False
    """Fold NaN and infinity instead of refusing them."""

    output: Path | None = None
    """Where the average goes; ``{decay}`` or ``{half_life}`` in it tells several averages apart."""
    reports: tuple[Path, ...] = ()
    """Further reports, besides the one beside each output."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Extra metadata of the output."""
    sha256: bool = False
    """Add a digest of every input file to the report."""
    force: bool = False
    """Overwrite an output that is not up to date."""
    strict: bool = False
    """Fail on a warning, publishing nothing."""

    def __post_init__(self) -> None:
        """Refuse contradictions.

        Raises:
            UsageError: with the sentence that the user needs.

        """
        self._check_words()
        self._check_inputs()
        self._check_weights()
        self._check_compute()
        self._check_output()

    def _check_words(self) -> None:
        for flag, value, words in (
            ("--order", self.order, get_args(Order)),
            ("--method", self.method, get_args(MethodName)),
            ("--init", self.init, get_args(Init)),
            ("--buffers", self.buffers, get_args(BufferPolicy)),
            ("--dtype", self.dtype, OUTPUT_DTYPES),
        ):
            if value not in words:
                raise UsageError(f"{flag} {quoted(str(value))} is none of {', '.join(words)}")

    def _check_inputs(self) -> None:
        if not self.paths:
            raise UsageError("no checkpoints were named", hint="ema-avg ckpt_*.pt --decay 0.9 -o ema.safetensors")
        if "" in self.paths:
            raise UsageError("a checkpoint is named by an empty text", hint="is a variable of the shell not set?")
        for flag, value in (("--every", self.every), ("--last", self.last)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} must be at least 1")
        if self.from_step is not None and self.to_step is not None and self.from_step > self.to_step:
            raise UsageError(f"--from {self.from_step} is after --to {self.to_step}")
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _check_pattern(flag, pattern)

    def _check_weights(self) -> None:
        if self.method == "uniform" and (self.decays or self.half_lives):
            raise UsageError("--method uniform has no decay", hint="leave out --decay and --half-life, or the method")
        if self.method == "uniform" and self.init != "first":
            raise UsageError("--method uniform has no --init")
        if self.decays and self.half_lives:
            raise UsageError("--decay and --half-life say the same thing", hint="give one of them")
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise UsageError(f"--decay {decay:g} is not in [0, 1)", hint="--decay 0.9")
        for half_life in self.half_lives:
            if not 0 < half_life <= LONGEST_HALF_LIFE:
                raise UsageError(f"--half-life {half_life:g} must be positive, and at most {LONGEST_HALF_LIFE:g}")
        for flag, values in (("--decay", self.decays), ("--half-life", self.half_lives)):
            if len(set(values)) != len(values):
                raise UsageError(f"{flag} has the same value twice")

    def _check_compute(self) -> None:
        if re.fullmatch(r"cpu|auto|cuda(:\d{1,3})?", self.device) is None:
            raise UsageError(f"--device {quoted(self.device)} is none of cpu, auto, cuda, cuda:0, cuda:1, ...")
        if self.threads is not None and not 1 <= self.threads <= 256:  # noqa: PLR2004 - nobody has more use
            raise UsageError(f"--threads {self.threads} must be from 1 to 256")

    def _check_output(self) -> None:
        for report in self.reports:
            if report.suffix != ".json":
                raise UsageError(
                    f"--report {quoted(str(report))}: there is no report format {quoted(report.suffix)} yet",
                    hint="name it .json",
                )
        for key, value in self.metadata.items():
            if key == "format" or key.startswith(OUR_METADATA):
                raise UsageError(f"--metadata {quoted(key)} is written by ema-avg itself", hint="choose another key")
            if not (is_writable_text(key) and is_writable_text(value)):
                raise UsageError(f"--metadata {quoted(str(key))} is not text that can be written")
        if self.output is None:
            return
        if not self.output.name:
            raise UsageError(
                f"the output {quoted(str(self.output))} is a folder", hint=f"-o {self.output / 'ema.safetensors'}"
            )
        if self.output.suffix != ".safetensors":
            hint = f"-o {self.output.with_suffix('.safetensors')}"
            raise UsageError(f"the output {quoted(str(self.output))} is written as safetensors", hint=hint)
        several = max(len(self.decays), len(self.half_lives)) > 1
        if several and not any(field in str(self.output) for field in OUTPUT_FIELDS):
            hint = f"-o {self.output.with_suffix('')}_{{decay}}.safetensors"
            raise UsageError("several averages need {decay} in the name of the output", hint=hint)


def _check_pattern(flag: str, pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of patterns that a later Python reads in another way
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{flag} {quoted(pattern)} is not a regular expression: {error}") from error
