"""The options of the main job as one record: declared once, taken by every command that averages."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast, get_type_hints

from ema_cli.cli import options as given
from ema_cli.cli import weight_options as weight
from ema_cli.cli.ci import detect
from ema_cli.cli.console import Style
from ema_cli.errors import UsageError
from ema_cli.options.average import Options
from ema_cli.options.output import parse_output
from ema_cli.options.weighting import split_weights
from ema_cli.storage.locations import locate
from ema_cli.text import parse_bytes, quoted
from ema_cli.weights.methods import MethodName

_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class MainOptions:
    """What the command line says, as Typer parses it. The fields are described by the help of their options."""

    order: given.OrderOption = "auto"
    steps: given.StepsOption = None
    from_step: given.FromOption = None
    to_step: given.ToOption = None
    every: given.EveryOption = 1
    last: given.LastOption = None
    key: given.KeyOption = None
    include: given.IncludeOption = None
    exclude: given.ExcludeOption = None
    strip_prefix: given.StripPrefixOption = None
    on_missing: given.OnMissingOption = "error"
    method: weight.MethodOption = None
    decay: weight.DecayOption = None
    one_minus_decay: weight.OneMinusDecayOption = None
    half_life: weight.HalfLifeOption = None
    per: weight.PerOption = None
    init: weight.InitOption = None
    clock: weight.ClockOption = None
    warmup: weight.WarmupOption = None
    inv_gamma: weight.InvGammaOption = None
    power: weight.PowerOption = None
    sigma_rel: weight.SigmaRelOption = None
    shape: weight.ShapeOption = None
    weights: weight.WeightsOption = None
    no_normalize: weight.NoNormalizeOption = False
    continue_from: weight.ContinueFromOption = None
    buffers: given.BuffersOption = "average"
    device: given.DeviceOption = "cpu"
    dtype: given.DtypeOption = "same"
    threads: given.ThreadsOption = None
    max_memory: given.MaxMemoryOption = None
    geometry: given.GeometryOption = "sample"
    allow_nonfinite: given.AllowNonfiniteOption = False
    output: given.OutputOption = None
    max_shard_size: given.MaxShardSizeOption = None
    report: given.ReportOption = None
    tied: given.TiedOption = "keep"
    metadata: given.MetadataOption = None
    sha256: given.Sha256Option = False
    force: given.ForceOption = False
    resume: given.ResumeOption = False
    strict: given.StrictOption = False
    dry_run: given.DryRunOption = False
    ci: given.CiOption = "auto"
    json: given.JsonOption = False
    quiet: given.QuietOption = False
    verbose: given.VerboseOption = False
    no_color: given.NoColorOption = False
    config: given.ConfigOption = None
    show_config: given.ShowConfigOption = False

    @property
    def style(self) -> Style:
        """How the program is to speak."""
        return Style(
            json=self.json,
            quiet=self.quiet,
            verbose=self.verbose,
            color=not self.no_color,
            service=detect(self.ci, os.environ),
        )

    def to_options(self, arguments: Sequence[str]) -> Options:
        """Return the options of an average of the checkpoints ``arguments``.

        Raises:
            UsageError: they cannot be understood, or contradict each other.

        """
        paths, by_hand = _parse_weights(arguments, self.method or [], self.weights)
        shard_bytes = _parse_size("--max-shard-size", self.max_shard_size, "5GB")
        output, shard_bytes = (None, shard_bytes) if self.output is None else parse_output(self.output, shard_bytes)
        return Options(
            paths=paths,
            order=self.order,
            steps=_parse_steps(self.steps),
            from_step=self.from_step,
            to_step=self.to_step,
            every=self.every,
            last=self.last,
            key=self.key,
            include=tuple(self.include or ()),
            exclude=tuple(self.exclude or ()),
            strip_prefix=self.strip_prefix,
            on_missing=self.on_missing,
            methods=cast("tuple[MethodName, ...]", tuple(self.method or ())),  # checked there
            decays=tuple(self.decay or ()),
            one_minus_decays=tuple(self.one_minus_decay or ()),
            half_lives=tuple(self.half_life or ()),
            per=self.per,
            init=self.init,
            clock=self.clock,
            warmup=self.warmup,
            inv_gamma=self.inv_gamma,
            power=self.power,
            sigma_rels=tuple(self.sigma_rel or ()),
            shape=self.shape,
            weights=by_hand,
            normalize=not self.no_normalize,
            continue_from=None if self.continue_from is None else locate(self.continue_from),
            buffers=self.buffers,
            device=self.device,
            dtype=self.dtype,
            tied=self.tied,
            threads=self.threads,
            max_memory=_parse_size("--max-memory", self.max_memory, "64MB"),
            geometry=self.geometry,
            allow_nonfinite=self.allow_nonfinite,
            output=output,
            max_shard_size=shard_bytes,
            reports=tuple(map(locate, self.report or ())),
            metadata=_parse_metadata(self.metadata or []),
            sha256=self.sha256,
            force=self.force,
            resume=self.resume,
            strict=self.strict,
        )


def takes(record: type[MainOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of ``record``, which it gets as its argument ``options``.

    Typer reads the signature of a function; this writes one from the fields, so that no list of options is kept twice.
    """
    hints = get_type_hints(record, include_extras=True)
    added = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(record)
        if f.default is not MISSING
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def flat(**values: Any) -> None:  # noqa: ANN401 - by the signature below
            options = record(**{one.name: values.pop(one.name) for one in added})
            command(**values, options=options)

        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [one for one in own if one.name != "options"]
        flat.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
        return flat

    return decorate


def _parse_steps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in parts):
        raise UsageError(f"--steps {quoted(text)} is not a list of whole numbers", hint="--steps 100,200,300")
    return tuple(int(part) for part in parts)


def _parse_weights(
    checkpoints: Sequence[str], methods: Sequence[str], weights: str | None
) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Return the paths and the weights by hand, which stand in ``--weights`` or behind each path."""
    if weights is None:
        return split_weights(checkpoints) if "manual" in methods else (tuple(checkpoints), None)
    try:
        return tuple(checkpoints), tuple(float(part) for part in weights.split(","))
    except ValueError as error:
        raise UsageError(f"--weights {quoted(weights)} is not a list of numbers", hint="--weights 1,2,3") from error


def _parse_size(flag: str, text: str | None, example: str) -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{flag} {quoted(text or '')} is not a size", hint=f"{flag} {example}") from error


def _parse_metadata(pairs: list[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--metadata {quoted(pair)} is not KEY=VALUE", hint="--metadata run=baseline")
        parsed[key] = value
    return parsed
