"""Every option of an average, checked for contradictions before anything is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ema_cli.errors import UsageError
from ema_cli.naming import OUTPUT_FIELDS, fields_in, fill_output_name, unknown_fields_in
from ema_cli.options.output import check_output_name
from ema_cli.options.weighting import WeightOptions, refuse_other_words
from ema_cli.storage.locations import Location
from ema_cli.storage.url import Url
from ema_cli.text import is_writable_text, quoted
from ema_cli.weights.methods import Clock, Method

Order = Literal["auto", "step", "name", "mtime", "given"]
BufferPolicy = Literal["average", "last", "first"]
GeometryMode = Literal["sample", "full", "none"]
OutputDtype = Literal["same", "float32", "bfloat16", "float16", "float64"]
OnMissing = Literal["error", "last"]
TiedPolicy = Literal["keep", "drop"]

REPORT_SUFFIXES = (".json", ".md", ".html")
OUR_METADATA = "ema_avg."
"""Prefix of the metadata keys that this program writes."""
DEFAULT_SAMPLES = 100
"""Pieces that a verification recomputes unless it is told otherwise."""
SWEPT = {"decays": "decay", "one_minus_decays": "one_minus_decay", "half_lives": "half_life", "sigma_rels": "sigma_rel"}
"""Options that can be given several times, and what they are called in the name of an output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(WeightOptions):
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
    on_missing: OnMissing = "error"
    """What happens where not all checkpoints have the same tensors; ``last``: those of the last one are written."""

    clock: Clock | None = None
    """What the steps count: the unit that is printed; ``epochs`` says that a decay per step is one per epoch."""
    continue_from: Location | None = None
    """An earlier output that the checkpoints are folded into."""

    buffers: BufferPolicy = "average"
    """What happens to BatchNorm statistics."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1`` or ``auto``."""
    dtype: OutputDtype = "same"
    """Element type of averaged tensors in the output; ``same`` as in the last checkpoint."""
    tied: TiedPolicy = "keep"
    """Whether tied tensors are written under every name, or under one."""
    threads: int | None = None
    """Worker threads; ``None`` for the cores, at most 4."""
    max_memory: int | None = None
    """Bound on the buffers of the fold, in bytes."""
    geometry: GeometryMode = "sample"
    """Whether the distances between the checkpoints are measured: on a sample of elements, on all, or not."""
    allow_nonfinite: bool = False
    """Fold NaN and infinity instead of refusing them."""

    run: str | None = None
    """The folder that ``{run}`` and ``{name}`` in the output mean; ``None`` for the one folder in ``paths``."""
    output: Location | None = None
    """Where the average goes; ``{decay}``, ``{method}`` and the like in it tell several averages apart."""
    max_shard_size: int | None = None
    """Bytes of tensors in one file: then the output is a folder of such files. ``None`` for one file."""
    reports: tuple[Location, ...] = ()
    """Further reports, besides the one beside each output."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Extra metadata of the output."""
    sha256: bool = False
    """Add a digest of every input file to the report."""
    force: bool = False
    """Overwrite an output that is not up to date."""
    resume: bool = False
    """Keep what is complete when the run is interrupted, and go on with an interrupted run."""
    strict: bool = False
    """Fail on a warning, publishing nothing."""

    def __post_init__(self) -> None:
        """Refuse contradictions.

        Raises:
            UsageError: with the sentence that the user needs.

        """
        refuse_other_words(
            ("--order", self.order, get_args(Order)),
            ("--on-missing", self.on_missing, get_args(OnMissing)),
            ("--buffers", self.buffers, get_args(BufferPolicy)),
            ("--tied", self.tied, get_args(TiedPolicy)),
            ("--geometry", self.geometry, get_args(GeometryMode)),
            ("--dtype", self.dtype, get_args(OutputDtype)),
            ("--clock", self.clock, get_args(Clock)),
        )
        self.check_weights()
        self._check_inputs()
        self._check_continuation()
        self._check_compute()
        self._check_output()

    def _check_inputs(self) -> None:
        if not self.paths:
            raise UsageError("no checkpoints were named", hint="ema-avg ckpt_*.pt --decay 0.9 -o ema.safetensors")
        if "" in self.paths:
            raise UsageError("a checkpoint is named by an empty text", hint="is a variable of the shell not set?")
        for flag, value in (("--every", self.every), ("--last", self.last)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} must be at least 1")
        if min(self.steps or (), default=0) < 0:
            raise UsageError("--steps must be whole numbers from 0 on", hint="--steps 100,200,300")
        if self.from_step is not None and self.to_step is not None and self.from_step > self.to_step:
            raise UsageError(f"--from {self.from_step} is after --to {self.to_step}")
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _check_pattern(flag, pattern)

    def _check_continuation(self) -> None:
        if self.continue_from is None:
            return
        if len(self.method_names) > 1 or any(len(getattr(self, swept)) > 1 for swept in SWEPT):
            raise UsageError("--continue-from goes on from one average", hint="continue the averages one by one")
        if "manual" in self.method_names:
            raise UsageError(
                "weights by hand belong to the checkpoints that they were given for, so --continue-from cannot go on",
                hint="give the weights of all checkpoints at once",
            )
        for flag, value in (("--last", self.last), ("--every", self.every if self.every > 1 else None)):
            if value is not None:
                raise UsageError(
                    f"{flag} chooses among all checkpoints, but --continue-from sees the new ones only",
                    hint=f"leave out {flag}, or average all checkpoints at once",
                )

    def _check_compute(self) -> None:
        if re.fullmatch(r"cpu|auto|cuda(:\d{1,3})?", self.device) is None:
            raise UsageError(f"--device {quoted(self.device)} is none of cpu, auto, cuda, cuda:0, cuda:1, ...")
        if self.threads is not None and not 1 <= self.threads <= 256:  # noqa: PLR2004 - nobody has more use
            raise UsageError(f"--threads {self.threads} must be from 1 to 256")

    def _check_output(self) -> None:
        for report in self.reports:
            if report.suffix not in REPORT_SUFFIXES:
                raise UsageError(
                    f"--report {quoted(str(report))}: there is no report format {quoted(report.suffix)}",
                    hint="name it .html, .md or .json",
                )
        for key, value in self.metadata.items():
            if key == "format" or key.startswith(OUR_METADATA):
                raise UsageError(f"--metadata {quoted(key)} is written by ema-avg itself", hint="choose another key")
            if not (is_writable_text(key) and is_writable_text(value)):
                raise UsageError(f"--metadata {quoted(str(key))} is not text that can be written")
        if self.output is None:
            return
        check_output_name(self.output, self.max_shard_size)
        self._check_resume()
        self._check_fields(self.output)

    def _check_resume(self) -> None:
        if not self.resume:
            return
        if isinstance(self.output, Url):
            raise UsageError("--resume keeps a partial file, which a store does not have", hint="-o ema.safetensors")
        if self.max_shard_size is not None:
            raise UsageError("--resume keeps one partial file, not a folder of shards", hint="-o ema.safetensors")
        if self.geometry == "full":
            raise UsageError("--resume cannot keep the sums of --geometry full", hint="--geometry sample")

    def _check_fields(self, output: Location) -> None:
        """Refuse a name with unknown fields, and one that would not tell several averages apart."""
        unknown = unknown_fields_in(str(output))
        if unknown:
            known = ", ".join(f"{{{field}}}" for field in OUTPUT_FIELDS)
            raise UsageError(f"the output {quoted(str(output))}: there is no {{{unknown[0]}}}", hint=f"use {known}")
        if self.continue_from is not None or self.lacks_decay:
            return
        methods = self.expand()
        for method in methods:
            values = method.name_fields()
            missing = next((field for field in fields_in(str(output)) if values[field] is None), None)
            if missing is not None:
                hint = "name it without, or {label} in its place"
                raise UsageError(f"the output {quoted(str(output))}: {method.label} has no {{{missing}}}", hint=hint)
        names = {fill_output_name(str(output), method.name_fields()) for method in methods}
        field = self._telling_field(methods)
        if len(names) < len(methods) and field is not None:
            end = output.suffix if self.max_shard_size is None else "/"
            hint = f"-o '{output.with_suffix('') if end != '/' else output}_{{{field}}}{end}'"
            raise UsageError(f"several averages need {{{field}}} in the name of the output", hint=hint)

    def _telling_field(self, methods: Sequence[Method]) -> str | None:
        """Return the field that all averages have, and that tells them apart; ``None`` if they are too much alike."""
        varying = [*(field for option, field in SWEPT.items() if len(getattr(self, option)) > 1), "method", "label"]
        for name in varying:
            values = [method.name_fields()[name] for method in methods]
            if None not in values and len({*map(str, values)}) == len(methods):
                return name
        return None


def _check_pattern(flag: str, pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of patterns that a later Python reads in another way
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{flag} {quoted(pattern)} is not a regular expression: {error}") from error
